"""Prompts of generation tasks: chat template, soft-token spans and reply tokens, the same in training and serving.

The chat template is rendered once, around markers in the places of the turns. What precedes and follows them frames
every prompt of the task, so that no template needs `{% generation %}`, and the special tokens in it are the only ones: no
second BOS is added.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from itertools import chain
from typing import Any

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.chat_templates import ChatTemplate
from rayfuse.modalities.dialogue_fitter import DialogueFitter
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.messages import (
    FILE_MARK,
    FileRef,
    Message,
    dump_messages,
    load_messages,
    without_marks,
)
from rayfuse.modalities.plain_tokenizer import PlainTokenizer
from rayfuse.modalities.pretrained import load_config, load_tokenizer
from rayfuse.modalities.prompt_pieces import Piece, ReplyIds, SpanFrame, num_tokens, split_at_files
from rayfuse.modalities.turns import TurnRenderer
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.tasks import GenerationTaskConfig

_RETOKENIZED = 2
"""Tokens by which a text of `max_tokens` tokens may exceed them where it is tokenized with its neighbors."""


class PromptRenderer:
    """Tokens of the prompts and replies of one generation task; the tokenizer is loaded at its first use."""

    def __init__(self, task: GenerationTaskConfig, inputs: Mapping[str, BaseInput]) -> None:
        self._task = task
        self._parts = task.prompt_parts(inputs)
        self.names = [name for _, name in self._parts if name is not None]
        """Inputs of the prompt, in its order."""
        self.text_inputs: dict[str, int] = {
            name: getattr(inputs[name], "max_tokens")  # noqa: B009 - only texts and dialogues have this encoder
            for name in self.names
            if inputs[name].encoder.type == "prompt"
        }
        """Inputs that are put in as text, with the largest number of their tokens."""
        self.span_inputs = [name for name in self.names if name not in self.text_inputs]
        """Inputs that are put in as soft tokens, in the order of the prompt."""
        self.encoded_inputs: tuple[str, ...] = ()
        """Inputs that the model reads as their encoders return them."""
        self._frames: Mapping[str, SpanFrame] = {}
        self.attended_inputs = task.inject.attended_inputs(inputs)
        """Inputs that layers of the language model attend to, in the order of the job."""
        self.chat_input = _find_chat(self.text_inputs, inputs)
        """The input whose messages are the turns of the prompt; None if it has none."""
        self.part_inputs = {
            source.type: name
            for name, source in inputs.items()
            if self.chat_input is not None and source.dialogue == self.chat_input
        }
        """Inputs whose values are parts of the messages, by type."""
        self.span_inputs += self.part_inputs.values()
        self._max_files = {kind: inputs[name].max_items for kind, name in self.part_inputs.items()}

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the language model. Raises DataError if it cannot be loaded or has no end token."""
        return _load_tokenizer(self._task.model)

    language: str | None = None
    """Code of the spoken language of a speech model; None for other models."""

    @property
    def max_source_tokens(self) -> int | None:
        """Largest number of positions of an encoder; None without an encoder, or for one without a limit."""
        return None

    @cached_property
    def _plain(self) -> PlainTokenizer:
        return PlainTokenizer(self.tokenizer)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """Chat template of the model, if it has one."""
        return ChatTemplate(self.tokenizer, self._task.model) if self.tokenizer.chat_template else None

    @cached_property
    def _turns(self) -> TurnRenderer:
        return TurnRenderer(self._plain, self._template, self._task.system)

    def render(
        self, texts: Mapping[str, str], spans: Set[str], dialogue: Dialogue | None = None
    ) -> list[Piece]:
        """Return the pieces of a prompt with the given texts and soft-token spans; absent inputs leave nothing.

        Pieces of text and spans alternate, and the first and the last piece are texts, which may be empty; replies in
        earlier turns are separate pieces, tokenized as when they are learned. White space around turns is removed, as
        many chat templates do. The text of a dialogue is that of `dump_messages`, and takes the place of `dialogue`.
        Raises InvalidInputError for a dialogue that the chat template does not take, or that is too long.
        """
        if self.chat_input is not None and self.chat_input in texts:
            messages = load_messages(texts[self.chat_input])
            dialogue = self.fit_messages(messages)
            texts = {**texts, self.chat_input: messages[-1].text}
        return self._pieces(texts, spans, dialogue or Dialogue())

    def fit_messages(self, messages: Sequence[Message]) -> Dialogue:
        """Return a dialogue without the oldest turns that exceed the `max_tokens` of the input.

        Raises InvalidInputError for messages that the chat template does not take, or whose last one does not fit alone.
        """
        assert self.chat_input is not None
        fitter = DialogueFitter(self.chat_input, self.text_inputs[self.chat_input], self._turns, self._length)
        return fitter.fit(messages)

    def earlier_replies(self, dialogue: Dialogue) -> list[list[int]]:
        """Return the tokens of the replies in earlier turns of a dialogue, each with its end token."""
        pieces = self._pieces({}, set(), dialogue)
        return [[*piece, self.end_id] for piece in pieces if isinstance(piece, ReplyIds)]

    def check_messages(self) -> None:
        """Raise DataError if the task reads a dialogue that its model or its `max_tokens` cannot hold."""
        if self.chat_input is None:
            return
        if self._template is None:
            raise DataError(
                f"{self._task.model}: this model has no chat template, which the messages of `{self.chat_input}` need; use a "
                "model that was trained on dialogues"
            )
        taken, limit = self._length(Dialogue(), ""), self.text_inputs[self.chat_input]
        if taken + _RETOKENIZED >= limit:
            raise DataError(
                f"{self._task.model}: chat template, system and words of the prompt take {taken} tokens and leave none of "
                f"the {limit} for messages; raise inputs.{self.chat_input}.max_tokens"
            )

    def longest_texts(self) -> dict[str, str]:
        """Return texts of all inputs that are put in as text, as long as they may be."""
        texts = {name: "a " * limit for name, limit in self.text_inputs.items()}
        if self.chat_input is not None:
            room = self.text_inputs[self.chat_input] - self._length(Dialogue(), "") - _RETOKENIZED
            text = self._plain.truncate(texts[self.chat_input], max(1, room))
            files = [FileRef(kind, item) for kind, most in self._max_files.items() for item in range(most)]
            texts[self.chat_input] = dump_messages(
                [Message("user", text + FILE_MARK * len(files), tuple(files))]
            )
        return texts

    def reply_ids(self, reply: str) -> list[int]:
        """Return the tokens of a reply with its end token.

        Raises InvalidInputError if they are more than `max_tokens`, or if a special token is inside.
        """
        ids = self._plain.ids(self._reply_prefix + reply)
        if not ids:
            raise InvalidInputError("the reply has no tokens; write a text, or remove the row")
        if (special := self._plain.find_special(ids)) is not None:
            raise InvalidInputError(
                f"the reply contains the special token {special}, which no text may; remove it"
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
        ids = self._plain.ids(self._turns.reply_end.strip())
        is_special = bool(ids) and ids[0] in self.tokenizer.added_tokens_decoder
        return int(ids[0] if is_special else self.tokenizer.eos_token_id)

    @cached_property
    def max_text_tokens(self) -> int:
        """Largest number of text tokens of a prompt and a reply."""
        return self._max_prompt_tokens + self._task.max_tokens

    @cached_property
    def _max_prompt_tokens(self) -> int:
        """Largest number of text tokens of a prompt."""
        texts = sum(limit + _RETOKENIZED for limit in self.text_inputs.values())
        if self.chat_input is not None:  # its limit is that of the whole prompt
            return texts + _RETOKENIZED * len(self.span_inputs)
        return texts + num_tokens(self.render(dict.fromkeys(self.text_inputs, ""), set(self.span_inputs)))

    def _length(self, dialogue: Dialogue, text: str) -> int:
        """Return the number of tokens of a prompt whose last message has this text, without the other inputs."""
        assert self.chat_input is not None
        return num_tokens(self._pieces({self.chat_input: text}, set(self.part_inputs.values()), dialogue))

    def _pieces(self, texts: Mapping[str, str], spans: Set[str], dialogue: Dialogue) -> list[Piece]:
        *earlier, before, after = self._turns.surround(dialogue)
        between, names = self._fill(texts, spans, dialogue.text)
        between[0] = between[0].lstrip()
        between[-1] = between[-1].rstrip() + after
        between[0] = before + between[0]
        files = chain(*(turn.files for turn in dialogue.turns), dialogue.files)
        present = {kind: name for kind, name in self.part_inputs.items() if name in spans}

        def split(text: str) -> list[Piece]:
            parts = split_at_files(text, files, present, self._frames)
            return [self._plain.ids(one) if isinstance(one, str) else one for one in parts]

        pieces: list[Piece] = []
        for text, reply in zip(earlier[::2], earlier[1::2], strict=True):
            pieces += [*split(text), ReplyIds(self._plain.ids(reply))]
        pieces += split(between[0])
        for name, text in zip(names, between[1:], strict=True):
            pieces += [name, *split(text)]
        pieces[0] = [*self._special_frame[0], *pieces[0]]
        pieces[-1] = [*pieces[-1], *self._special_frame[1]]
        return pieces

    def _fill(
        self, texts: Mapping[str, str], spans: Set[str], words: str | None
    ) -> tuple[list[str], list[str]]:
        """Return the texts of the user's turn before, between and after its spans, and the spans.

        words: text behind the inputs, in the place of the prompt's own.
        """
        between, names = [""], []
        for literal, name in self._parts:
            between[-1] += literal if words is None else ""
            if name in self.text_inputs and name in texts:
                is_last_turn = name == self.chat_input  # which is never cut
                text, limit = texts[name], self.text_inputs[name]
                between[-1] += self._plain.clean(text) if is_last_turn else self._plain.truncate(text, limit)
            elif name is not None and name in spans:
                frame = self._frames.get(name, SpanFrame())
                between[-1] += frame.before
                names.append(name)
                between.append(frame.after)
        if words is not None:
            between[-1] += "\n" * bool(between[-1]) + self._plain.clean(without_marks(words))
        return between, names

    @cached_property
    def _reply_prefix(self) -> str:
        """White space before a reply: the template's; without a template, a space after a prompt that ends in a word."""
        if self._template is not None:
            return self._turns.reply_prefix
        if not self._parts:
            return ""
        _, name = self._parts[-1]
        return " " if name is None or name in self.text_inputs else ""

    @cached_property
    def _special_frame(self) -> tuple[list[int], list[int]]:
        """Tokens before and after a prompt: BOS, where there is no chat template that has it and the tokenizer adds it."""
        if self._template is not None:
            return [], []
        ids = self.tokenizer("a")["input_ids"]
        adds_bos = self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        return ids[:1] if adds_bos else [], []


def _load_tokenizer(model: str) -> Any:
    tokenizer = load_tokenizer(model)
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{model}: its tokenizer has no eos_token, so that replies would never end; set it with "
            "`tokenizer.eos_token = …` and `tokenizer.save_pretrained`"
        )
    return tokenizer


def _find_chat(names: Iterable[str], inputs: Mapping[str, BaseInput]) -> str | None:
    return next((name for name in names if inputs[name].type == "chat"), None)
