"""Prompts of generation tasks: chat template, soft-token spans and reply tokens, the same in training and serving.

The chat template is rendered once, around a marker in the place of the user's turn. What precedes and follows the marker
frames every prompt of the task, so that no template needs `{% generation %}`, and the special tokens in it are the only
ones: no second BOS is added.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.pretrained import load_config, load_tokenizer
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig

_MARKER = "rayfusemarker"
"""Word in the place of a turn while a chat template is rendered; templates change white space and nothing else."""
_RETOKENIZED = 2
"""Tokens by which a text of `max_tokens` tokens may exceed them where it is tokenized with its neighbors."""

Piece = list[int] | str
"""Part of a prompt: the ids of text tokens, or the name of the input whose soft tokens are there."""


@dataclass(frozen=True)
class Dialogue:
    """Turns before the user's turn that the inputs fill, as requests have them; training has none but the task's."""

    system: str | None = None
    """The system's turn, in the place of the task's."""
    turns: tuple[tuple[str, str], ...] = ()
    """Earlier turns in their order: the role, and the text."""
    text: str | None = None
    """Words of the user's turn, in the place of those of the task's prompt."""


@dataclass(frozen=True)
class _ReplyFrame:
    prefix: str
    """White space that the template puts before a reply."""
    end: str
    """Text after a reply."""


class PromptRenderer:
    """Tokens of the prompts and replies of one generation task; the tokenizer is loaded at its first use."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> None:
        self._task = task
        self._parts = task.prompt_parts(inputs)
        names = [name for _, name in self._parts if name is not None]
        self.text_inputs: dict[str, int] = {
            name: getattr(inputs[name], "max_tokens")  # noqa: B009 - only texts have this encoder
            for name in names
            if inputs[name].encoder.type == "prompt"
        }
        """Inputs that are put in as text, with the largest number of their tokens."""
        self.span_inputs = [name for name in names if name not in self.text_inputs]
        """Inputs that are put in as soft tokens, in the order of the prompt."""
        self.encoded_inputs: tuple[str, ...] = ()
        """Inputs that the model reads as their encoders return them."""
        self.attended_inputs = task.inject.attended_inputs(inputs)
        """Inputs that layers of the language model attend to, in the order of the job."""

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the language model. Raises DataError if it cannot be loaded or has no end token."""
        tokenizer = load_tokenizer(self._task.model)
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{self._task.model}: its tokenizer has no eos_token, so that replies would never end; set it with "
                "`tokenizer.eos_token = …` and `tokenizer.save_pretrained`"
            )
        return tokenizer

    language: str | None = None
    """Code of the spoken language of a speech model; None for other models."""

    @property
    def max_source_tokens(self) -> int | None:
        """Largest number of positions of an encoder; None without an encoder, or for one without a limit."""
        return None

    @property
    def _template(self) -> str | None:
        """Chat template of the model, if it has one."""
        found: str | None = self.tokenizer.chat_template
        return found

    @property
    def names(self) -> list[str]:
        """Inputs of the prompt, in its order."""
        return [name for _, name in self._parts if name is not None]

    def render(
        self, texts: Mapping[str, str], spans: Set[str], dialogue: Dialogue | None = None
    ) -> list[Piece]:
        """Return the pieces of a prompt with the given texts and soft-token spans; absent inputs leave nothing.

        Texts and spans alternate, and the first and the last piece are texts, which may be empty. White space around
        the user's turn is removed, as many chat templates do. Raises InvalidInputError for a dialogue that the chat
        template does not take.
        """
        before, after = self._frame if dialogue is None else self._frame_of_dialogue(dialogue)
        between, names = self._fill(texts, spans, None if dialogue is None else dialogue.text)
        between[0] = between[0].lstrip()
        between[-1] = between[-1].rstrip() + after
        between[0] = before + between[0]
        first, last = self._special_frame
        pieces: list[Piece] = [[*first, *self._ids(between[0])]]
        for name, text in zip(names, between[1:], strict=True):
            pieces += [name, self._ids(text)]
        pieces[-1] = [*pieces[-1], *last]
        return pieces

    def reply_ids(self, reply: str) -> list[int]:
        """Return the tokens of a reply with its end token.

        Raises InvalidInputError if they are more than `max_tokens`, or if a special token is inside.
        """
        ids = self._ids(self._reply_prefix + reply)
        if not ids:
            raise InvalidInputError("the reply has no tokens; write a text, or remove the row")
        special = next((token for token in ids if token in self._special_tokens), None)
        if special is not None:
            raise InvalidInputError(
                f"the reply contains the special token {self._special_tokens[special]}, which no text may; remove it"
            )
        if len(ids) >= self._task.max_tokens:
            raise InvalidInputError(
                f"the reply has {len(ids) + 1} tokens with its end token, above max_tokens {self._task.max_tokens}; "
                "raise max_tokens, or shorten it"
            )
        return [*ids, self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of reply tokens, without special tokens and white space around it."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the part of a text that its first `max_tokens` tokens make up, without the names of special tokens.

        The tokenizer would read such a name as the token, and the text would end its turn in the prompt.
        """
        text = self._without_special_tokens(text)
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:
            ids = self._ids(text)
            return text if len(ids) <= max_tokens else str(tokenizer.decode(ids[:max_tokens]))
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(found) <= max_tokens else text[: found[max_tokens - 1][1]]

    def check_context(self, span_tokens: int) -> None:
        """Raise DataError if the longest prompt, with this number of soft tokens, and reply exceed the model's positions."""
        self.check_length(self.max_text_tokens + span_tokens)

    def check_length(self, length: int) -> None:
        """Raise DataError if a sequence of `length` tokens exceeds the positions of the language model."""
        limit = self.max_positions
        if limit is not None and length > limit:
            raise DataError(
                f"prompt, soft tokens and reply take up to {length} tokens, above the {limit} positions of "
                f"{self._task.model}; lower max_tokens of the task or of its texts, or use "
                "`align: {type: transformer, num_queries: 16}`"
            )

    @cached_property
    def max_positions(self) -> int | None:
        """Largest number of tokens of a sequence; None if the model has no limit. Raises DataError if it cannot be read."""
        config = load_config(self._task.model).get_text_config()
        return getattr(config, "max_position_embeddings", None) or None

    @cached_property
    def end_id(self) -> int:
        """Token that ends a reply: the special token after the assistant's turn in the chat template, else EOS."""
        ids = self._ids(self._reply_frame.end.strip())
        is_special = bool(ids) and ids[0] in self.tokenizer.added_tokens_decoder
        return int(ids[0] if is_special else self.tokenizer.eos_token_id)

    @cached_property
    def max_text_tokens(self) -> int:
        """Largest number of text tokens of a prompt and a reply."""
        return self._max_prompt_tokens + self._task.max_tokens

    @cached_property
    def _max_prompt_tokens(self) -> int:
        """Largest number of text tokens of a prompt."""
        fixed = self.render(dict.fromkeys(self.text_inputs, ""), set(self.span_inputs))
        texts = sum(limit + _RETOKENIZED for limit in self.text_inputs.values())
        return sum(len(piece) for piece in fixed if not isinstance(piece, str)) + texts

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        """Names of the special tokens by their ids."""
        found = self.tokenizer.added_tokens_decoder.items()
        return {number: token.content for number, token in found if token.special}

    def _without_special_tokens(self, text: str) -> str:
        pattern = re.compile("|".join(map(re.escape, self._special_tokens.values())) or "(?!)")
        while (cleaned := pattern.sub("", text)) != text:
            text = cleaned
        return text

    def _fill(
        self, texts: Mapping[str, str], spans: Set[str], words: str | None
    ) -> tuple[list[str], list[str]]:
        """Return the texts of the user's turn before, between and after its spans, and the spans.

        words: text behind the inputs, in the place of the prompt's own.
        """
        between, names = [""], []
        for literal, name in self._parts:
            between[-1] += literal if words is None else ""
            if name in self.text_inputs:
                between[-1] += self.truncate(texts[name], self.text_inputs[name]) if name in texts else ""
            elif name is not None and name in spans:
                names.append(name)
                between.append("")
        if words is not None:
            between[-1] += "\n" * bool(between[-1]) + self._without_special_tokens(words)
        return between, names

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """Texts before the user's turn, and from there to where the reply begins."""
        return self._surround(Dialogue(self._task.system))

    def _frame_of_dialogue(self, dialogue: Dialogue) -> tuple[str, str]:
        if dialogue.turns and not self._template:
            raise InvalidInputError(
                "this model has no chat template, so that it answers single messages; send one", "messages"
            )
        clean = self._without_special_tokens
        turns = tuple((role, clean(text)) for role, text in dialogue.turns)
        system = self._task.system if dialogue.system is None else clean(dialogue.system)
        try:
            return self._surround(Dialogue(system, turns))
        except DataError as error:
            raise InvalidInputError(
                f"the model's chat template does not take these messages: {error.__cause__}", "messages"
            ) from None

    def _surround(self, dialogue: Dialogue) -> tuple[str, str]:
        if not self._template:
            return f"{dialogue.system}\n" if dialogue.system else "", ""
        system = [("system", dialogue.system)] if dialogue.system else []
        rendered = self._apply_template([*system, *dialogue.turns, ("user", _MARKER)], ask=True)
        before, _, after = rendered.rpartition(_MARKER)
        return before, after

    @cached_property
    def _reply_frame(self) -> _ReplyFrame:
        if not self._template:
            return _ReplyFrame("", "")
        system = [("system", self._task.system)] if self._task.system else []
        turns = [*system, ("user", "")]
        opening, _, end = self._apply_template([*turns, ("assistant", _MARKER)], ask=False).partition(_MARKER)
        opened = self._apply_template(turns, ask=True)
        prefix = opening.removeprefix(opened) if opening.startswith(opened) else ""
        return _ReplyFrame(prefix if prefix.isspace() else "", end)

    def _apply_template(self, turns: Sequence[tuple[str, Any]], ask: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask, enable_thinking=False
            )
        except Exception as error:
            raise DataError(
                f"{self._task.model}: its chat template cannot be rendered: {type(error).__name__}: {error}; "
                "correct chat_template.jinja, or remove `system`"
            ) from error
        return text

    @cached_property
    def _reply_prefix(self) -> str:
        """White space before a reply: the template's; without a template, a space after a prompt that ends in a word."""
        if self._template:
            return self._reply_frame.prefix
        if not self._parts:
            return ""
        _, name = self._parts[-1]
        return " " if name is None or name in self.text_inputs else ""

    @cached_property
    def _special_frame(self) -> tuple[list[int], list[int]]:
        """Tokens before and after a prompt: BOS, where there is no chat template that has it and the tokenizer adds it."""
        if self._template:
            return [], []
        ids = self.tokenizer("a")["input_ids"]
        adds_bos = self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        return ids[:1] if adds_bos else [], []
