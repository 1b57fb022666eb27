"""Continuous batching: requests join and leave a batch of cache slots between two steps.

The schedule is that of Orca (Yu et al., 2022), the prompt in chunks that of Sarathi (Agrawal et al., 2023): a step runs
a bounded part of the prompts that are not complete, then appends one token to each reply.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import torch
from torch import nn

from rayfuse.decoding.model_runner import Batch, CrossCache, ModelRunner
from rayfuse.decoding.preparation import RequestPreparer
from rayfuse.decoding.ragged_check import build_runner
from rayfuse.decoding.request import Completion, DecodeRequest, Piece, join_pieces
from rayfuse.decoding.sequence import ActiveSequence
from rayfuse.decoding.slot_cache import SlotCache, Window, bytes_per_slot, fit_slots
from rayfuse.decoding.slot_table import SlotTable
from rayfuse.errors import InvalidInputError, RayfuseError

Event = tuple[int, Piece | RayfuseError]
"""A request's id with a piece of its reply, or with the error that ended it."""

DEFAULT_MAX_LENGTH = 2048
DEFAULT_SOURCE_LENGTH = 1500


class Decoder:
    """Decodes requests with one model and one cache; not thread-safe.

    Greedy replies equal those of `model.generate` up to rounding, whichever requests share the batch. What slots hold is
    reused for prompts that begin alike, so build a new decoder, or call `reset`, when the model's weights change.

    `model`: a model of transformers or PEFT, or the runner of one (`rayfuse.decoding.ragged_check.build_runner`).
    `tokenizer`: turns tokens into text; None: replies have tokens only.
    `memory`: limit of the key–value cache in bytes; None: as many slots as `max_slots`.
    `max_length`: positions of a slot, for prompt and reply together; at most the model's context length.
    `max_source_length`: positions of a source of an encoder–decoder model, or tokens of the inputs that layers attend to.
    `prefill_tokens`: positions of prompts that a step runs at most; fewer let replies flow more evenly.
    `end_tokens`: tokens that end a reply; None: those of the model's generation config.

    Raises ResourceError if no slot fits into `memory`, and SpecError for an architecture that cannot batch requests of
    different lengths.
    """

    def __init__(
        self,
        model: nn.Module | ModelRunner,
        tokenizer: Any = None,
        *,
        memory: int | None = None,
        max_slots: int = 8,
        max_length: int | None = None,
        max_source_length: int = DEFAULT_SOURCE_LENGTH,
        prefill_tokens: int = 256,
        end_tokens: Iterable[int] | None = None,
    ) -> None:
        self._runner = runner = model if isinstance(model, ModelRunner) else build_runner(model)
        runner.model.eval()
        self.max_length = min(max_length or DEFAULT_MAX_LENGTH, runner.context_length or 2**31)
        self._preparer = RequestPreparer(runner, tokenizer, self.max_length, max_source_length, end_tokens)
        self._prefill_tokens = prefill_tokens
        slot_bytes = bytes_per_slot(runner.layers, self.max_length)
        slot_bytes += bytes_per_slot(runner.cross_layers, max_source_length)
        self.slots = fit_slots(slot_bytes, memory, max_slots, self.max_length)
        self._cache = SlotCache(runner.layers, self.slots, self.max_length)
        self._cross = (
            CrossCache(runner.cross_layers, self.slots, max_source_length) if runner.cross_layers else None
        )
        caches = [cache for cache in (self._cache, self._cross) if cache is not None]
        self._table = SlotTable(caches, reuse=not runner.is_encoder_decoder)
        self._waiting: deque[ActiveSequence] = deque()
        self._cancelled: set[int] = set()
        self._ids = count()

    @property
    def end_tokens(self) -> frozenset[int]:
        """Return the tokens that end a reply."""
        return self._preparer.end_tokens

    @property
    def busy(self) -> bool:
        """Return True if a request waits or is in progress."""
        return bool(self._waiting or self._table.sequences)

    @property
    def waiting(self) -> int:
        """Number of requests that have no slot yet."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Number of requests that have a slot."""
        return len(self._table.sequences)

    def submit(self, request: DecodeRequest) -> int:
        """Queue a request; return the id that its events carry. Raises InvalidInputError if it cannot be decoded."""
        sequence = self.prepare(request)
        self.enqueue(sequence)
        return sequence.id

    def enqueue(self, sequence: ActiveSequence) -> None:
        """Queue a prepared request."""
        self._waiting.append(sequence)

    def cancel(self, request_id: int) -> None:
        """End a request; its slot is free in the next step. An id that has ended is ignored."""
        self._cancelled.add(request_id)

    def reset(self) -> list[Event]:
        """Drop all requests and what the slots hold; return the requests' last pieces."""
        sequences = [*self._table.sequences, *self._waiting]
        self._waiting.clear()
        self._cancelled.clear()
        self._table.clear()
        return [(sequence.id, sequence.cancel()) for sequence in sequences]

    def step(self) -> list[Event]:
        """Admit requests, run a part of their prompts, and append one token to each reply."""
        events = self._drop_cancelled()
        events += self._admit()
        events += self._prefill()
        events += self._decode()
        return events

    def generate(self, requests: Iterable[DecodeRequest]) -> list[Completion]:
        """Decode requests and return their replies in the same order."""
        ids = [self.submit(request) for request in requests]
        pieces: dict[int, list[Piece]] = {request_id: [] for request_id in ids}
        while self.busy:
            for request_id, outcome in self.step():
                if isinstance(outcome, RayfuseError):
                    self.reset()
                    raise outcome
                pieces.setdefault(request_id, []).append(outcome)
        return [join_pieces(pieces[request_id]) for request_id in ids]

    def prepare(self, request: DecodeRequest) -> ActiveSequence:
        """Check a request without queueing it, from any thread. Raises InvalidInputError if it cannot be decoded."""
        return self._preparer.prepare(next(self._ids), request)

    def _drop_cancelled(self) -> list[Event]:
        if not self._cancelled:
            return []
        dropped = [sequence for sequence in self._table.sequences if sequence.id in self._cancelled]
        for sequence in dropped:
            self._table.remove(sequence)
        dropped += [sequence for sequence in self._waiting if sequence.id in self._cancelled]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.id not in self._cancelled)
        self._cancelled.clear()
        return [(sequence.id, sequence.cancel()) for sequence in dropped]

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self._waiting and self._table.free:
            sequence = self._waiting.popleft()
            if not self._runner.is_encoder_decoder:
                self._table.add(sequence)
                if self._cross is not None:
                    self._runner.write_inputs(self._cross, self.active - 1, sequence.states)
                continue
            assert self._cross is not None
            # One encoder pass per step: the replies in progress wait for it.
            events += self._start(sequence, self._cross)
            break
        return events

    def _start(self, sequence: ActiveSequence, cross: CrossCache) -> list[Event]:
        """Encode the source of a request and run its decoder's prompt."""
        request = sequence.request
        try:
            states = request.encoder_states
            if states is None:
                assert request.source is not None
                states = self._runner.encode(request.source, request.adapter)
            if len(states) > cross.positions:
                raise InvalidInputError(
                    f"the source has {len(states)} positions, and a slot has {cross.positions}; shorten it or raise "
                    "max_source_length",
                    "source",
                )
        except InvalidInputError as error:
            return [(sequence.id, error)]
        self._table.add(sequence)
        first = len(self._table.sequences) - 1
        batch = self._batch(first, [sequence], len(sequence.prompt))
        logits = self._runner.start(self._cache, batch, cross, states.to(self._runner.device))
        sequence.length = len(sequence.prompt)
        self._table.promote(sequence)
        return self._append([sequence], logits)

    def _prefill(self) -> list[Event]:
        """Run the next part of all prompts that are not complete."""
        first = self._table.decoding
        rows = self._table.sequences[first:]
        if not rows:
            return []
        longest = max(len(row.prompt) - row.length for row in rows)
        queries = min(longest, max(1, self._prefill_tokens // len(rows)))
        batch = self._batch(first, rows, queries)
        logits = self._runner.run(self._cache, batch, self._cross)
        done = []
        for index, row in enumerate(rows):
            row.length = min(row.length + queries, len(row.prompt))
            if row.length == len(row.prompt):
                done.append(index)
        for index in done:
            self._table.promote(rows[index])
        return self._append([rows[index] for index in done], logits[done]) if done else []

    def _decode(self) -> list[Event]:
        """Append one token to each reply."""
        rows = self._table.sequences[: self._table.decoding]
        if not rows:
            return []
        logits = self._runner.run(self._cache, self._batch(0, rows, 1), self._cross)
        for row in rows:
            row.length += 1
        return self._append(rows, logits)

    def _batch(self, first: int, rows: Sequence[ActiveSequence], queries: int) -> Batch:
        """Return the next tokens of rows, `queries` of each; a row with fewer repeats its last."""
        return build_batch(self._runner, first, rows, queries)

    def _append(self, rows: Sequence[ActiveSequence], logits: torch.Tensor) -> list[Event]:
        """Choose the next token of each row from logits (rows, vocabulary), and free the slots of replies that end."""
        events: list[Event] = []
        choices = logits.argmax(-1).tolist()
        invalid = logits.isnan().any(-1).tolist()
        for index, row in enumerate(rows):
            outcome = self._next(row, logits[index], choices[index], invalid=invalid[index])
            if outcome is not None:
                events.append((row.id, outcome))
            if isinstance(outcome, RayfuseError) or (
                outcome is not None and outcome.finish_reason is not None
            ):
                self._table.remove(row)
        return events

    def _next(
        self, row: ActiveSequence, logits: torch.Tensor, argmax: int, *, invalid: bool
    ) -> Piece | RayfuseError | None:
        if invalid:
            self._table.erase(row)
            return RayfuseError(
                "the model computed NaN for this request; use a precision with a larger range"
            )
        try:
            return row.append(None if row.takes_argmax else logits.cpu(), argmax)
        except RayfuseError as error:
            return error


def build_batch(runner: ModelRunner, first: int, rows: Sequence[ActiveSequence], queries: int) -> Batch:
    """Return the next `queries` tokens of rows in slots `first` and following; a row with fewer repeats its last."""
    starts = tuple(row.length for row in rows)
    counts = [min(queries, len(row.prompt) + len(row.generated) - row.length) for row in rows]
    steps = torch.arange(queries)
    last = torch.tensor(counts)[:, None] - 1
    positions = torch.tensor(starts)[:, None] + torch.minimum(steps, last)
    window = Window(first, starts, positions.to(runner.device), int(positions.max()) + 1)
    adapters = None
    if any(row.request.adapter is not None for row in rows):
        adapters = tuple(row.request.adapter or runner.active_adapter for row in rows)
    states = tuple(row.states for row in rows) if not runner.is_encoder_decoder else ()
    ids, embeddings = _inputs(runner, rows, counts, queries)
    return Batch(window, ids, embeddings, tuple(count - 1 for count in counts), adapters, states)


def _inputs(
    runner: ModelRunner, rows: Sequence[ActiveSequence], counts: Sequence[int], queries: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    spans = [(row, row.length, row.length + count) for row, count in zip(rows, counts, strict=True)]
    if all(row.prompt.only_tokens or start >= len(row.prompt) for row, start, _ in spans):
        ids = [_tokens(row, start, stop) for row, start, stop in spans]
        padded = [part + part[-1:] * (queries - len(part)) for part in ids]
        return torch.tensor(padded, device=runner.device), None
    parts = []
    for row, start, stop in spans:
        part = row.prompt.embeddings(start, stop, runner.embed)
        parts.append(torch.cat([part, part[-1:].expand(queries - len(part), -1)]))
    return None, torch.stack(parts)


def _tokens(row: ActiveSequence, start: int, stop: int) -> list[int]:
    length = len(row.prompt)
    if start >= length:
        return row.generated[start - length : stop - length]
    return row.prompt.token_ids(start, stop)
