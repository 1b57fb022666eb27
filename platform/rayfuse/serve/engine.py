"""From a parsed request to its answers: fetch, prepare in threads, batch, and the limits on all of it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayfuse.data.samples import Sample
from rayfuse.errors import BadInput, DataError, SpecError
from rayfuse.model.explain import check_explainable, passes
from rayfuse.model.predictor import Predictor
from rayfuse.serve import fetch, protocol
from rayfuse.serve.batcher import Batched, Batcher
from rayfuse.serve.problems import Problem
from rayfuse.serve.protocol import Asked, Reads, Remote, Values
from rayfuse.serve.settings import Settings

MAX_EXPLAINED = 16
"""Instances of one request that are explained."""

_FETCH_SECONDS = 10.0
_FETCHES = 8
_FAILURES_IN_A_ROW = 5
_STUCK_SECONDS = 60.0

_log = logging.getLogger("rayfuse.serve")


@dataclass
class Timing:
    """What a request took, in seconds: the longest of each stage where its instances ran in several batches."""

    prepared: float = 0.0
    waited: float = 0.0
    computed: float = 0.0
    rows: int = 0

    def add(self, batched: Sequence[Batched[Any]], prepared: float) -> None:
        self.prepared += prepared
        self.waited += max(one.waited for one in batched)
        self.computed += max(one.computed for one in batched)
        self.rows = max(self.rows, *(one.rows for one in batched))

    @property
    def header(self) -> str:
        """The value of a `Server-Timing` header, in milliseconds."""
        stages = {"prepare": self.prepared, "queue": self.waited, "model": self.computed}
        parts = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items()]
        return f'{", ".join(parts)};desc="batch of {self.rows}"'


class Engine:
    """A loaded model that answers many requests at a time. Lives in one event loop."""

    def __init__(self, predictor: Predictor, settings: Settings, threads: int = 2) -> None:
        self.predictor = predictor
        self.reads = Reads(predictor.job.inputs, predictor.maker.modalities)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self.settings = settings
        self.active = 0
        self.explaining = 0
        """Passes of the model that the explanations in work will take."""
        self._batcher: Batcher[Sample, dict[str, Any]] = Batcher(
            predictor.answer, settings.max_size, settings.wait
        )
        # In a thread of their own, so that answers need not wait for them, and one by one.
        self._explainer: Batcher[Sample, dict[str, Any]] = Batcher(
            partial(predictor.answer, explain=True), max_size=1, wait=0.0
        )

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version`, for replies."""
        name = self.settings.model or self.predictor.job.registered_name
        return {"name": name, "version": self.settings.version}

    def change(self, settings: Settings) -> None:
        """Go on with other limits; requests in work keep theirs."""
        self.settings = settings
        self._batcher.max_size, self._batcher.wait = settings.max_size, settings.wait

    async def parse(self, body: bytes, content_type: str) -> Asked:
        """Away from the event loop: a large body takes a while."""
        asked = await self._in_thread(protocol.parse, body, content_type, self.reads)
        protocol.require(asked, self.reads)
        return asked

    async def answer(self, asked: Asked) -> tuple[dict[str, Any], Timing]:
        """The reply to a request. Raises Problem for an input that cannot be read."""
        if asked.explain:
            _check_explained(asked, self.reads)
        await self._fetch(asked)
        answers: list[dict[str, Any]] = []
        timing = Timing()
        size = self._batcher.max_size
        for start in range(0, len(asked.instances), size):
            began = time.monotonic()
            samples = await self._prepare(asked, range(start, min(start + size, len(asked.instances))))
            prepared = time.monotonic() - began
            if asked.explain:
                batched = await self._explained(samples)
            else:
                batched = await asyncio.gather(*(self._batcher.submit(sample) for sample in samples))
            timing.add(batched, prepared)
            answers.extend(one.answer for one in batched)
        _check_finite(answers)
        return protocol.reply(asked, answers, self.model), timing

    async def _explained(self, samples: Sequence[Sample]) -> list[Batched[dict[str, Any]]]:
        """Answers with reasons. An explanation counts in the queue as all the passes that it takes.

        One request is always let in where no other is being explained, or long ones never were.
        """
        cost = sum(map(passes, samples))
        if self.explaining and self.explaining + cost > self.settings.most:
            raise Problem("overloaded", "enough answers are being explained already; try again soon")
        self.explaining += cost
        try:
            return await asyncio.gather(*(self._explainer.submit(sample) for sample in samples))
        finally:
            self.explaining -= cost

    def check(self) -> None:
        """Raise RuntimeError where this endpoint had better be started again."""
        if self._batcher.failures >= _FAILURES_IN_A_ROW:
            raise RuntimeError(f"the model failed {self._batcher.failures} times in a row")
        if self._batcher.broken or self._explainer.broken:
            raise RuntimeError("batches are not collected any more")
        if self._batcher.busy > max(_STUCK_SECONDS, 2 * self.settings.timeout):
            raise RuntimeError(f"one call of the model has taken {self._batcher.busy:.0f} s so far")

    async def close(self) -> None:
        await self._batcher.close()
        await self._explainer.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, call, *arguments)

    async def _prepare(self, asked: Asked, indices: range) -> list[Sample]:
        calls = (self._in_thread(self.predictor.prepare, asked.instances[index]) for index in indices)
        samples: list[Sample] = []
        for index, found in zip(indices, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(found, BaseException):
                raise self._explain(found, asked, index)
            samples.append(found)
        return samples

    def _explain(self, error: BaseException, asked: Asked, index: int) -> BaseException:
        """Preparing computes with nothing but what the caller sent, so that what fails is the caller's."""
        if not isinstance(error, Exception):
            return error
        if not isinstance(error, BadInput):
            _log.error("an input could not be prepared", exc_info=error)
            error = BadInput(f"these inputs cannot be processed ({type(error).__name__})")
        return protocol.explain(error, asked, index, self.reads)

    async def _fetch(self, asked: Asked) -> None:
        """Replace every `Remote` by its content."""
        wanted = [
            (index, name, holder, key)
            for index, values in enumerate(asked.instances)
            for name, given in values.items()
            for holder, key in _places_of_remotes(values, name, given)
        ]
        budget = fetch.Budget(self.settings.body)
        slots = asyncio.Semaphore(_FETCHES)

        async def get(index: int, name: str, holder: Any, key: Any) -> None:
            remote: Remote = holder[key]
            async with slots:
                try:
                    content = await fetch.fetch(remote.url, budget, _FETCH_SECONDS)
                except BadInput as error:
                    bad = BadInput(f"{name}: {protocol.shown(remote.url)}: {error}")
                    raise protocol.explain(bad, asked, index, self.reads) from None
            holder[key] = content

        try:
            async with asyncio.TaskGroup() as group:
                for place in wanted:
                    group.create_task(get(*place))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None


def _places_of_remotes(values: Values, name: str, given: Any) -> Iterator[tuple[Any, Any]]:
    """Where the files to fetch of an input stand: (container, key)."""
    if isinstance(given, Remote):
        yield values, name
    elif isinstance(given, list):
        yield from ((given, place) for place, item in enumerate(given) if isinstance(item, Remote))


def warm_up(predictor: Predictor) -> None:
    """Answer something before the first caller comes, with all inputs and with the required ones alone.

    Raises DataError where the model has no finite answer even to blank inputs.
    """
    everything: Values = {name: modality.blank() for name, modality in predictor.maker.modalities.items()}
    required = {name for name, options in predictor.job.inputs.items() if not options.optional}
    for names in (set(everything), required or set(everything)):
        features = {name: [value] for name, value in everything.items() if name in names}
        answers = predictor.answer([Sample(features, {name: [b"blank"] for name in features}, {})])
        if not _finite(answers):
            raise DataError("this model answers blank inputs with NaN or infinity; its weights are broken")


def _check_explained(asked: Asked, reads: Reads) -> None:
    """Raise Problem for what is not explained: too many inputs, or too many instances at once."""
    try:
        check_explainable(list(reads.inputs))
    except SpecError as error:
        raise Problem("not-explained", str(error)) from None
    if len(asked.instances) > MAX_EXPLAINED:
        raise Problem(
            "too-large",
            f"instances: {len(asked.instances)} of them to explain; send at most {MAX_EXPLAINED} in a request",
        )


def _check_finite(answers: list[dict[str, Any]]) -> None:
    if not _finite(answers):
        raise Problem(
            "broken-input", "the model has no finite answer to these inputs; are their values extreme?"
        )


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_finite, value))
