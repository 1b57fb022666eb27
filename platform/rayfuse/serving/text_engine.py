"""Texts of a served model: a decoder for each of its generation tasks, whose batches requests join and leave."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rayfuse.decoding.prompt import prompt_length
from rayfuse.decoding.request import ContextLengthError
from rayfuse.decoding.stream import DecoderBusyError, DecoderThread, ReplyStats, ReplyStream
from rayfuse.errors import DataError, InvalidInputError, RayfuseError
from rayfuse.model.fused import task_heads
from rayfuse.model.predictor import Predictor, PreparedSample
from rayfuse.model.slot_decoding import decode_tokens, sampling_params
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tasks.text_decoding import PromptInputs, TextDecoding
from rayfuse.model.token_counts import max_aligned_tokens
from rayfuse.serving.metrics import EndpointMetrics
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.streaming import cancel
from rayfuse.spec.service import GenerationLimits

MAX_CONSECUTIVE_FAILURES = 5
"""Failures of the model in a row after which a replica is unhealthy."""


class TextTask:
    """A generation task with its decoder."""

    def __init__(
        self,
        head: TaskHead,
        decoding: TextDecoding,
        limits: GenerationLimits,
        memory: int | None,
        max_source_length: int,
        observe: Callable[[ReplyStats], None],
    ) -> None:
        """Build the decoder, with at most `memory` bytes of keys and values. Raises ResourceError if no slot fits."""
        from rayfuse.decoding.decoder import Decoder  # imports transformers, a second that other models save

        self._head = head
        self.decoding = decoding
        self.decoder = Decoder(
            decoding.runner,
            decoding.tokenizer,
            memory=memory,
            max_slots=limits.max_num_seqs,
            max_length=limits.max_model_len,
            max_source_length=max_source_length,
            end_tokens=decoding.stop_ids,
        )
        self.thread = DecoderThread(
            self.decoder, max_waiting_tokens=limits.max_queued_tokens, observe=observe
        )

    async def open(self, inputs: PromptInputs) -> ReplyStream:
        """Start a text, with the settings of the task. Raises InvalidInputError or DecoderBusyError."""
        request = await asyncio.to_thread(self.decoding.render, inputs, None)
        length = prompt_length(request.prompt)
        room = self.decoder.max_length - length + 1
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {length} tokens, above the {self.decoder.max_length} of "
                "generation.max_model_len; send smaller inputs"
            )
        params = sampling_params(self.decoding.options, min(self.decoding.max_tokens, room))
        return self.thread.open(replace(request, params=params))

    def prediction(self, token_ids: Sequence[int]) -> dict[str, Any]:
        """Return the prediction of a text from its tokens."""
        [found] = self._head.format_predictions(torch.tensor([list(token_ids)], dtype=torch.float32))
        return found


class TextEngine:
    """The generation tasks of a model that are decoded request by request; none for other models."""

    def __init__(self, predictor: Predictor, limits: GenerationLimits, metrics: EndpointMetrics) -> None:
        """Start the decoders, which share `limits.kv_cache_memory`. Raises ResourceError if it is too small."""
        self.limits = limits
        self.decodings = predictor.text_decodings()
        heads, shared = task_heads(predictor.model), limits.kv_cache_memory
        memory = None if shared is None or not self.decodings else shared // len(self.decodings)
        self._order = list(predictor.job.tasks)
        self.tasks = {
            name: TextTask(
                heads[name],
                decoding,
                limits,
                memory,
                self._max_source_length(predictor, decoding),
                partial(metrics.record_reply, name),
            )
            for name, decoding in self.decodings.items()
        }

    def _max_source_length(self, predictor: Predictor, decoding: TextDecoding) -> int:
        """Return the positions of a source: those of an encoder, or all tokens that layers of the model attend to."""
        attended = [
            max_aligned_tokens(predictor.job, predictor.model, name) for name in decoding.attended_inputs
        ]
        if attended or decoding.attends_fused:
            return sum(attended) + decoding.attends_fused
        longest = self.limits.max_model_len
        return min(longest, decoding.max_source_tokens or longest)

    def set_max_waiting(self, requests: int) -> None:
        """Change how many requests may wait for a slot of each decoder."""
        for task in self.tasks.values():
            task.thread.max_waiting = requests

    async def open(self, prepared: PreparedSample) -> dict[str, ReplyStream]:
        """Start the texts of a sample, by task. Raises InvalidInputError or DecoderBusyError."""
        streams: dict[str, ReplyStream] = {}
        try:
            for name, inputs in prepared.prompts.items():
                streams[name] = await self.tasks[name].open(inputs)
        except BaseException:
            cancel(list(streams.values()))
            raise
        return streams

    async def complete(self, prepared: PreparedSample) -> dict[str, Any]:
        """Return the prediction of a sample with its texts, which are cancelled with this call."""
        streams = await self.open(prepared)
        try:
            done = await asyncio.gather(*(stream.completion() for stream in streams.values()))
        finally:
            cancel(list(streams.values()))
        tokens = {name: one.token_ids for name, one in zip(streams, done, strict=True)}
        return self.join(prepared, tokens)

    def join(self, prepared: PreparedSample, tokens: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the prediction of a sample from the tokens of its texts, by task."""
        found = {name: self.tasks[name].prediction(ids) for name, ids in tokens.items()}
        outputs = {**prepared.prediction["outputs"], **found}
        return {**prepared.prediction, "outputs": {name: outputs[name] for name in self._order}}

    def check_health(self, max_step_seconds: float) -> None:
        """Raise RuntimeError for a decoder that has stopped, or whose step takes longer."""
        for name, task in self.tasks.items():
            if not task.thread.is_alive:
                raise RuntimeError(f"the decoder of {name} has stopped")
            if task.thread.step_seconds > max_step_seconds:
                raise RuntimeError(
                    f"a step of the decoder of {name} has been running for {task.thread.step_seconds:.0f} s"
                )
            if task.thread.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                raise RuntimeError(
                    f"the decoder of {name} failed {task.thread.consecutive_failures} times in a row"
                )

    def close(self) -> None:
        """Cancel all texts and stop the decoders."""
        for task in self.tasks.values():
            task.thread.close()


def check_first_tokens(prepared: PreparedSample, decodings: Mapping[str, TextDecoding]) -> None:
    """Decode a token of each text of a sample. Raises DataError if that fails, as with weights that are NaN."""
    try:
        for name, decoding in decodings.items():
            # A schema, which is compiled here, cannot be finished within one token.
            request = replace(decoding.render(prepared.prompts[name], None), constraint=None)
            decode_tokens(decoding.runner, [request], decoding.stop_ids, 1, decoding.options)
    except RayfuseError as error:
        raise DataError(f"the model cannot write a text for dummy inputs: {error}") from None


def decoding_problem(error: RayfuseError) -> Exception:
    """Return the problem of an expected error of a decoder; other errors as they are."""
    if isinstance(error, DecoderBusyError):
        return ProblemError("overloaded", str(error))
    return ProblemError("invalid-input", error.reason) if isinstance(error, InvalidInputError) else error
