"""The inference engine of an endpoint: fetches, preprocesses and batches requests within the endpoint's limits."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayfuse.data.samples import Sample
from rayfuse.errors import DataError, InvalidInputError, RayfuseError, ResourceError, SpecError
from rayfuse.formatting import truncate
from rayfuse.model.explain import check_explainable, num_forward_passes
from rayfuse.model.predictor import Predictor, PreparedSample
from rayfuse.serving import protocol, url_fetcher
from rayfuse.serving.admission import AdmittingEngine
from rayfuse.serving.batcher import Batcher, BatchResult
from rayfuse.serving.decode_budgets import CpuBudget
from rayfuse.serving.decoders import Decoders
from rayfuse.serving.metrics import EndpointMetrics
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.protocol import ModelSignature, PredictRequest, RemoteFile, Values
from rayfuse.serving.settings import Settings
from rayfuse.serving.text_engine import (
    MAX_CONSECUTIVE_FAILURES,
    TextEngine,
    check_first_tokens,
    decoding_problem,
)
from rayfuse.spec.service import GenerationLimits

MAX_EXPLAIN_INSTANCES = 16
"""Maximum number of instances in a request with `explain`."""

_FETCH_TIMEOUT_SECONDS = 10.0
_MAX_CONCURRENT_FETCHES = 8
_STALL_SECONDS = 60.0

_log = logging.getLogger("rayfuse.serving")


@dataclass
class Timing:
    """Seconds that a request spent in each stage. A batch counts with its slowest instance."""

    preprocess_seconds: float = 0.0
    """Decoding and preprocessing."""
    queue_seconds: float = 0.0
    """Waiting for a batch."""
    compute_seconds: float = 0.0
    """Forward passes of the model."""
    batch_size: int = 0
    """Largest batch that the request was part of."""

    def add(self, results: Sequence[BatchResult[Any]], preprocess_seconds: float) -> None:
        """Add the times of one batch of the request."""
        self.preprocess_seconds += preprocess_seconds
        self.queue_seconds += max(one.queue_seconds for one in results)
        self.compute_seconds += max(one.compute_seconds for one in results)
        self.batch_size = max(self.batch_size, *(one.batch_size for one in results))

    @property
    def server_timing_header(self) -> str:
        """Value of a `Server-Timing` header, in milliseconds."""
        stages = {
            "prepare": self.preprocess_seconds,
            "queue": self.queue_seconds,
            "model": self.compute_seconds,
        }
        parts = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items()]
        return f'{", ".join(parts)};desc="batch of {self.batch_size}"'


class InferenceEngine(AdmittingEngine):
    """A loaded model that serves concurrent requests. All methods run in one event loop."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        num_threads: int = 2,
        decoders: Decoders | None = None,
        generation: GenerationLimits | None = None,
        metrics: EndpointMetrics | None = None,
    ) -> None:
        """Preprocess in `num_threads`; `decoders` are by default as many processes for the model's own inputs.

        Raises ResourceError if `generation.kv_cache_memory` is too small for a text.
        """
        self.predictor = predictor
        self.signature = ModelSignature(predictor.job.inputs, predictor.preprocessor.modalities)
        self.pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        self.decoders = decoders or Decoders.for_predictor(predictor, num_threads, settings.max_decode_memory)
        self.settings = settings
        self.active_explain_passes = 0
        """Forward passes of the explanations in progress."""
        self.metrics = metrics or EndpointMetrics()
        self.texts = TextEngine(predictor, generation or GenerationLimits(), self.metrics)
        self.texts.set_max_waiting(settings.max_queued_requests)
        self.batcher: Batcher[Sample, PreparedSample] = Batcher(
            partial(predictor.prepare_samples, decodings=self.texts.decodings),
            settings.max_batch_size,
            settings.batch_wait_timeout,
        )
        # In a separate thread, one at a time, so that predictions need not wait for explanations.
        self._explainer: Batcher[Sample, dict[str, Any]] = Batcher(
            partial(predictor.predict_samples, explain=True), max_batch_size=1, batch_wait_timeout=0.0
        )

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version` of the model, for responses."""
        name = self.settings.model or self.predictor.job.registered_model_name
        return {"name": name, "version": self.settings.version}

    def update_settings(self, settings: Settings) -> None:
        """Replace the limits, batching and keys; active requests finish with those that they started with."""
        self.settings = settings
        self.decoders.limit_memory(settings.max_decode_memory)
        self.texts.set_max_waiting(settings.max_queued_requests)
        self.batcher.max_batch_size, self.batcher.batch_wait_timeout = (
            settings.max_batch_size,
            settings.batch_wait_timeout,
        )

    async def parse(self, body: bytes, content_type: str) -> PredictRequest:
        """Parse and validate a request body in a thread; raise ProblemError where it is invalid."""
        request: PredictRequest = await self._in_thread(protocol.parse, body, content_type, self.signature)
        protocol.check_required(request, self.signature)
        return request

    async def predict(self, request: PredictRequest) -> tuple[dict[str, Any], Timing]:
        """Return the response body of a request and its timing; raise ProblemError for an invalid input."""
        if request.explain:
            check_explain_request(request, self.signature)
        await self._fetch_remote_files(request)
        predictions: list[dict[str, Any]] = []
        timing = Timing()
        size = self.batcher.max_batch_size
        budget = CpuBudget(
            self.settings.max_decode_time, min(self.decoders.num_processes, len(request.instances))
        )
        for start in range(0, len(request.instances), size):
            started = time.monotonic()
            indices = range(start, min(start + size, len(request.instances)))
            samples = await self._preprocess(request, indices, budget)
            preprocess_seconds = time.monotonic() - started
            if request.explain:
                explained = await self._run_explanations(samples)
                timing.add(explained, preprocess_seconds)
                predictions.extend(one.result for one in explained)
                continue
            results = await asyncio.gather(*(self.batcher.submit(sample) for sample in samples))
            timing.add(results, preprocess_seconds)
            decoding_started = time.monotonic()
            prepared = [one.result for one in results]
            predictions += await self._complete(prepared)
            timing.compute_seconds += time.monotonic() - decoding_started
        _check_finite(predictions)
        self.metrics.record_prediction(timing)
        return protocol.build_response(request, predictions, self.model), timing

    async def prepare(self, request: PredictRequest) -> PreparedSample:
        """Predict the single instance of a request except its texts; raise ProblemError for an invalid input."""
        protocol.check_required(request, self.signature)
        await self._fetch_remote_files(request)
        [sample] = await self._preprocess(request, range(1), CpuBudget(self.settings.max_decode_time))
        return (await self.batcher.submit(sample)).result

    async def predict_prepared(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Predict samples, together with those of other requests, without texts. Raises ProblemError for NaN."""
        results = await asyncio.gather(*(self.batcher.submit(sample) for sample in samples))
        predictions = [one.result.prediction for one in results]
        _check_finite(predictions)
        return predictions

    async def decode_sound(self, name: str, content: bytes, start: float, seconds: float) -> Any:
        """Decode `seconds` of a sound of an input from `start` on: an array, float32 (samples,).

        Raises ProblemError if it is invalid.
        """
        budget = CpuBudget(self.settings.max_decode_time)
        try:
            return await self._in_thread(self.decoders.decode_sound, name, content, start, seconds, budget)
        except (InvalidInputError, ResourceError) as error:
            request = PredictRequest([{name: content}], is_batch=False)
            problem = error.for_input(name) if isinstance(error, InvalidInputError) else error
            raise self._to_problem(problem, request, 0) from None

    def remote_fetcher(self) -> Callable[[str], Awaitable[bytes]]:
        """Return what downloads the files of one request, which together have a limit of bytes."""
        budget = url_fetcher.ByteBudget(self.settings.max_body_size)
        slots = asyncio.Semaphore(_MAX_CONCURRENT_FETCHES)

        async def fetch(url: str) -> bytes:
            async with slots:
                return await url_fetcher.fetch(url, budget, _FETCH_TIMEOUT_SECONDS)

        return fetch

    async def _complete(self, prepared: Sequence[PreparedSample]) -> list[dict[str, Any]]:
        """Decode the texts of several samples; the first error ends all of them."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.texts.complete(one)) for one in prepared]
        except BaseExceptionGroup as failed:
            first = failed.exceptions[0]
            raise (decoding_problem(first) if isinstance(first, RayfuseError) else first) from None
        return [task.result() for task in tasks]

    async def _run_explanations(self, samples: Sequence[Sample]) -> list[BatchResult[dict[str, Any]]]:
        """Predict with explanations. Every forward pass counts towards `max_in_flight`.

        A request is always accepted while no other is being explained: else one above the limit never would be.
        """
        modalities = self.predictor.preprocessor.modalities
        cost = sum(num_forward_passes(sample, modalities) for sample in samples)
        if self.active_explain_passes and self.active_explain_passes + cost > self.settings.max_in_flight:
            raise ProblemError("overloaded", "too many explanations are in progress; retry later")
        self.active_explain_passes += cost
        try:
            return await asyncio.gather(*(self._explainer.submit(sample) for sample in samples))
        finally:
            self.active_explain_passes -= cost

    def check_health(self) -> None:
        """Raise RuntimeError where the replica must be restarted."""
        if self.batcher.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise RuntimeError(f"the model failed {self.batcher.consecutive_failures} times in a row")
        if self.batcher.has_crashed or self._explainer.has_crashed:
            raise RuntimeError("the batcher has stopped")
        if self.batcher.busy_seconds > max(_STALL_SECONDS, 2 * self.settings.request_timeout):
            raise RuntimeError(f"a forward pass has been running for {self.batcher.busy_seconds:.0f} s")
        self.texts.check_health(max(_STALL_SECONDS, 2 * self.settings.request_timeout))

    async def close(self) -> None:
        """Stop the batchers and their threads; queued requests are cancelled."""
        await self.batcher.close()
        await self._explainer.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()
        self.texts.close()

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, call, *arguments)

    async def _preprocess(self, request: PredictRequest, indices: range, budget: CpuBudget) -> list[Sample]:
        calls = (self._in_thread(self._preprocess_one, request.instances[index], budget) for index in indices)
        samples: list[Sample] = []
        for index, result in zip(indices, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(result, BaseException):
                raise self._to_problem(result, request, index)
            samples.append(result)
        return samples

    def _preprocess_one(self, values: Values, budget: CpuBudget) -> Sample:
        """Preprocess an instance; the time of this thread and of the decoding processes counts."""
        budget.use(0.0)
        started = time.thread_time()
        sample = self.predictor.preprocess(values, partial(self.decoders.decode, budget=budget))
        budget.use(time.thread_time() - started)
        return sample

    def _to_problem(self, error: BaseException, request: PredictRequest, index: int) -> BaseException:
        """Preprocessing depends on the request alone, so any exception in it is a client error."""
        if not isinstance(error, Exception):
            return error
        if isinstance(error, ResourceError):
            _log.error("%s", error)
            return ProblemError("overloaded", "files cannot be decoded at the moment; retry later")
        if not isinstance(error, InvalidInputError):
            _log.error("preprocessing failed", exc_info=error)
            error = InvalidInputError(f"these inputs cannot be processed ({type(error).__name__})")
        return protocol.to_problem(error, request, index)

    async def _fetch_remote_files(self, request: PredictRequest) -> None:
        """Replace every `RemoteFile` of a request by its content."""
        files = [
            (index, name, holder, key)
            for index, values in enumerate(request.instances)
            for name, given in values.items()
            for holder, key in _find_remote_files(values, name, given)
        ]
        download = self.remote_fetcher()

        async def fetch(index: int, name: str, holder: Any, key: Any) -> None:
            remote: RemoteFile = holder[key]
            try:
                content = await download(remote.url)
            except InvalidInputError as error:
                reason = f"{truncate(remote.url)}: {error.reason}"
                raise protocol.to_problem(InvalidInputError(reason, name), request, index) from None
            holder[key] = content

        try:
            async with asyncio.TaskGroup() as group:
                for file in files:
                    group.create_task(fetch(*file))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None


def _find_remote_files(values: Values, name: str, given: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of each `RemoteFile` of an input."""
    if isinstance(given, RemoteFile):
        yield values, name
    elif isinstance(given, list):
        yield from ((given, index) for index, item in enumerate(given) if isinstance(item, RemoteFile))


def warm_up(predictor: Predictor) -> None:
    """Predict on dummy features, with all inputs and with the required ones only, before the first request.

    Raises DataError where a prediction is NaN or infinite.
    """
    dummies: Values = {
        name: modality.dummy_features() for name, modality in predictor.preprocessor.modalities.items()
    }
    required = {name for name, options in predictor.job.inputs.items() if not options.optional}
    decodings = predictor.text_decodings()
    for names in (set(dummies), required or set(dummies)):
        features = {name: [value] for name, value in dummies.items() if name in names}
        keys = {name: [b"dummy"] for name in features}
        [prepared] = predictor.prepare_samples([Sample(features, keys, {})], decodings)
        check_first_tokens(prepared, decodings)
        if not _all_finite(prepared.prediction):
            raise DataError("the model predicts NaN or infinity for dummy inputs; its weights are invalid")


def check_explain_request(request: PredictRequest, signature: ModelSignature) -> None:
    """Raise ProblemError where the model has too many inputs to explain, or the request too many instances."""
    try:
        check_explainable(list(signature.inputs))
    except SpecError as error:
        raise ProblemError("explanation-unavailable", str(error)) from None
    if len(request.instances) > MAX_EXPLAIN_INSTANCES:
        raise ProblemError(
            "too-large",
            f"instances: {len(request.instances)} exceeds the maximum of {MAX_EXPLAIN_INSTANCES} with `explain`; "
            "send several requests",
        )


def _check_finite(predictions: list[dict[str, Any]]) -> None:
    if not _all_finite(predictions):
        raise ProblemError(
            "invalid-input", "the prediction is NaN or infinite; check the inputs for extreme values"
        )


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_all_finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_all_finite, value))
