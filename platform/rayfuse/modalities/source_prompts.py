"""Prompts that the encoder of an encoder–decoder model reads."""

from functools import cached_property

from rayfuse.errors import DataError
from rayfuse.modalities.pretrained import load_config, load_generation_config
from rayfuse.modalities.prompts import PromptRenderer

_SOURCE_LIMITS = ("max_encoder_position_embeddings", "max_source_positions", "max_position_embeddings")
_TARGET_LIMITS = ("max_decoder_position_embeddings", "max_target_positions", "max_position_embeddings")
"""Settings with the numbers of positions; T5 and its kin, whose positions are relative, have none."""


class SourcePromptRenderer(PromptRenderer):
    """Prompts for the encoder of an encoder–decoder model, with the special tokens that its tokenizer puts around a text.

    Such models know no turns: a chat template is not used, and `system` is the first line of the prompt.
    """

    @cached_property
    def decoder_prompt(self) -> list[int]:
        """Tokens that a reply follows in the decoder: its start token, and what the tokenizer puts before a target.

        Raises DataError if the model states no start token.
        """
        return [self._start_token, *self._around(self.tokenizer(text_target="a")["input_ids"])[0]]

    @property
    def _start_token(self) -> int:
        """First token of the decoder."""
        settings = (load_generation_config(self._task.model), load_config(self._task.model))
        found = (getattr(holder, "decoder_start_token_id", None) for holder in settings)
        start = next((token for token in found if token is not None), None)
        if start is None:
            raise DataError(
                f"{self._task.model}: its configuration has no decoder_start_token_id; set it in config.json, as that of "
                "the model that it was trained from"
            )
        return int(start)

    def check_context(self, span_tokens: int) -> None:
        """Raise DataError if the longest prompt exceeds the positions of the encoder, or a reply those of the decoder."""
        self.check_source(self._max_prompt_tokens + span_tokens)
        self.check_target(self._task.max_tokens)

    def check_source(self, length: int) -> None:
        """Raise DataError if a prompt of `length` tokens exceeds the positions of the encoder."""
        limit = self.max_source_tokens
        if limit is not None and length > limit:
            raise DataError(
                f"prompt and soft tokens take up to {length} tokens, above the {limit} positions of the encoder of "
                f"{self._task.model}; lower max_tokens of the texts, or use "
                "`align: {type: transformer, num_queries: 16}`"
            )

    def check_target(self, reply_tokens: int) -> None:
        """Raise DataError if a reply of this length exceeds the positions of the decoder."""
        limit = self._limit(_TARGET_LIMITS)
        length = len(self.decoder_prompt) + reply_tokens - 1  # nothing follows its last token
        if limit is not None and length > limit:
            raise DataError(
                f"a reply takes up to {length} tokens, above the {limit} positions of the decoder of "
                f"{self._task.model}; lower max_tokens of the task to {reply_tokens - (length - limit)}"
            )

    @cached_property
    def max_source_tokens(self) -> int | None:
        return self._limit(_SOURCE_LIMITS)

    @cached_property
    def _special_frame(self) -> tuple[list[int], list[int]]:
        return self._around(self.tokenizer("a")["input_ids"])

    def _around(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after the text in the tokens of `a`."""
        text = self._plain.ids("a")
        first = next((place for place in range(len(ids)) if ids[place : place + len(text)] == text), len(ids))
        return ids[:first], ids[first + len(text) :]

    def _limit(self, names: tuple[str, ...]) -> int | None:
        config = load_config(self._task.model)
        return next((int(limit) for name in names if (limit := getattr(config, name, None))), None)

    @property
    def _template(self) -> None:
        """None: such models know no turns."""
        return

    @property
    def _reply_prefix(self) -> str:
        return ""
