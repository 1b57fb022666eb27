"""Prompts of speech models: tokens in front of a transcript that state the language and the task."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from rayfuse.errors import DataError
from rayfuse.modalities.pretrained import load_config, load_generation_config, whisper_num_positions
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig

SECONDS_PER_STAMP = 0.02


class Segment(NamedTuple):
    """A part of a transcript."""

    start: float
    """Seconds from the beginning of the clip."""
    end: float
    """Seconds from the beginning of the clip."""
    text: str


class TranscriptRenderer(SourcePromptRenderer):
    """Tokens of the transcripts of a Whisper model, whose decoder reads the states of an input's encoder."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> None:
        super().__init__(task, inputs)
        assert task.reads is not None
        self.reads = task.reads
        self._source: Any = inputs[task.reads]
        self.span_inputs = []
        self.encoded_inputs = (self.reads,)
        self.language = task.language or "en"

    def check_context(self, span_tokens: int) -> None:
        """Raise DataError if the model is no Whisper model or has no such language, or does not fit the input's encoder."""
        config, encoder = load_config(self._task.model), load_config(self._source.encoder.model)
        for path, found in ((self._task.model, config), (self._source.encoder.model, encoder)):
            if found.model_type != "whisper":
                raise DataError(
                    f"{path}: a {found.model_type} model cannot be used with reads; use a Whisper model"
                )
        if config.d_model != encoder.d_model:
            raise DataError(
                f"{self._task.model}: its decoder reads states of width {config.d_model}, and the encoder of "
                f"`{self.reads}`, {self._source.encoder.model}, returns {encoder.d_model}; use the same model in both"
            )
        self.check_target(self._task.max_tokens)

    @cached_property
    def max_source_tokens(self) -> int:
        return whisper_num_positions(round(self._source.sample_rate * self._source.max_seconds))

    @cached_property
    def decoder_prompt(self) -> list[int]:
        """Start token, language and task of a multilingual model, and the token for a text without time stamps."""
        names = ["<|notimestamps|>"]
        if getattr(load_generation_config(self._task.model), "is_multilingual", False):
            names = [f"<|{self.language}|>", f"<|{self._task.task}|>", *names]
        elif self._task.language not in (None, "en") or self._task.task != "transcribe":
            raise DataError(
                f"{self._task.model}: it transcribes English only; use a multilingual model, or remove language and task"
            )
        return [self._start_token, *map(self._special_token, names)]

    @property
    def first_time_stamp(self) -> int:
        """Token of the time 0; the tokens behind it are later times."""
        return self.decoder_prompt[-1] + 1

    def split(self, ids: Sequence[int], seconds: float, is_last: bool) -> tuple[list[Segment], float]:
        """Return the segments of a window's transcript with time stamps, and the second at which the next window begins.

        A segment that the window cuts off is left to the next one, if there is one (Radford et al., 2022, section 3.8);
        otherwise it ends with the window.
        """
        found = self._segments(ids)
        stamped = [token >= self.first_time_stamp for token in ids if token != self.end_id]
        is_cut_off = stamped[-1:] == [False] or stamped[-2:] == [True, True]
        closed = [segment for segment in found if segment.end > segment.start]
        if is_cut_off and closed and not is_last:
            return closed, closed[-1].end
        return [
            one if one.end > one.start else one._replace(end=max(one.start, seconds)) for one in found
        ], seconds

    def _segments(self, ids: Sequence[int]) -> list[Segment]:
        """Return the segments of a transcript; one that is cut off ends where it begins."""
        found: list[Segment] = []
        start, text = 0.0, []
        for token in [*ids, self.end_id]:
            if token < self.first_time_stamp and token != self.end_id:
                text.append(token)
                continue
            is_end = token == self.end_id
            time = start if is_end else (token - self.first_time_stamp) * SECONDS_PER_STAMP
            if words := self.decode(text):
                found.append(Segment(start, time, words))
            start, text = time, []
        return found

    @property
    def _reply_prefix(self) -> str:
        return " "

    def _special_token(self, name: str) -> int:
        vocabulary = self.tokenizer.get_added_vocab()
        if name not in vocabulary:
            raise DataError(
                f"{self._task.model}: its tokenizer has no token {name}; set language to a code that it has, such as en"
            )
        return int(vocabulary[name])
