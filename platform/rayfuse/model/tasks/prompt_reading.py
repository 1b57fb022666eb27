"""Reading of prompts by language models: the interface, and causal and encoder–decoder models."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from rayfuse.decoding.prompt import prompt_length
from rayfuse.decoding.request import DecodeRequest
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.source_prompts import SourcePromptRenderer
from rayfuse.model.encoder_decoder import EncoderDecoderModel
from rayfuse.model.language_model import CausalModel, LanguageModel, VisionLanguageModel
from rayfuse.model.reply_grammar import ReplyGrammar
from rayfuse.model.slot_decoding import decode_tokens, slot_runner
from rayfuse.model.tasks.prompt_layout import PromptLayout
from rayfuse.model.tasks.text_decoding import PromptInputs, TimeStamps
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.spec.tasks import GenerationTaskConfig


class LearnedReply(NamedTuple):
    """A reply in a sequence of a batch, for its loss."""

    row: int
    """Row of the sequence."""
    start: int
    """Position before the first token of the reply, whose state predicts it."""
    ids: Sequence[int]
    """Tokens of the reply, with its end token."""


class PromptReading(ABC):
    """Passes of a task's language model over the prompts of samples and replies to them."""

    model_class: ClassVar[type[LanguageModel]]
    """Class of the language model."""

    def __init__(
        self,
        task: GenerationTaskConfig,
        lm: Any,
        renderer: Any,
        bridge: Any,
        grammar: ReplyGrammar,
    ) -> None:
        """Store a task's options, its language model, and the renderer of its prompts, which fit this class.

        bridge: module between aligned tokens and the language model, by default a map to its width; None for models that
        read the tokens of encoders. grammar: restricts the replies.
        """
        self._task = task
        self._lm = lm
        self._renderer = renderer
        self.grammar = grammar
        """Restricts the replies to the JSON schema of the task, if it has one."""
        self.layout = PromptLayout(renderer, lm, bridge)

    def check_context(self, span_lengths: Mapping[str, int]) -> None:
        """Raise DataError if the longest prompt and reply exceed the positions of the language model.

        span_lengths: largest number of soft tokens of each input.
        """
        self._renderer.check_context(sum(span_lengths.get(name, 0) for name in self._renderer.span_inputs))

    @abstractmethod
    def reply_states(
        self, fused: FusedState, replies: Sequence[Sequence[int]], num_earlier: Sequence[int]
    ) -> tuple[torch.Tensor, list[LearnedReply]]:
        """Return the hidden states of sequences with a reply each, float (batch, length, width), and what they predict.

        num_earlier: number of replies in earlier turns of each sample, the newest, that are predicted too.
        """

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Run the language model as it was before training. Raises SpecError if it has no adapters."""
        with self._lm.without_adapters():
            yield

    @property
    def encoded_inputs(self) -> Sequence[str]:
        """Inputs that are read as their encoders return them."""
        found: Sequence[str] = self._renderer.encoded_inputs
        return found

    @property
    def time_stamps(self) -> TimeStamps | None:
        """Time stamps of transcripts; None for models that do not write them."""
        return None

    def inputs(self, fused: FusedState) -> list[PromptInputs]:
        """Return the inputs of each sample's prompt."""
        return self.layout.inputs(fused)

    @abstractmethod
    def request(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> DecodeRequest:
        """Return the request that decodes a reply to one sample, without its settings.

        Raises InvalidInputError for a dialogue that cannot be rendered.
        """

    @abstractmethod
    def continuation(self, ids: Sequence[int]) -> DecodeRequest:
        """Return the request that continues a text, given as tokens, without the task's prompt."""

    @abstractmethod
    def generate(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        """Generate a reply to each sample with transformers, int64 (batch, tokens), padded after its end token."""

    def decode(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        """Decode a reply to each sample, int64 (batch, tokens), padded after its end token.

        In slots, unless the settings or the model need `generate`.
        """
        runner = slot_runner(self._lm, self._task.decoding)
        if runner is None:
            return self.generate(fused, stop_ids)
        requests = [self.request(one) for one in self.inputs(fused)]
        self._check_requests(requests)
        return decode_tokens(runner, requests, stop_ids, self._task.max_tokens, self._task.decoding)

    @abstractmethod
    def _check_requests(self, requests: Sequence[DecodeRequest]) -> None:
        """Raise DataError if a request exceeds the positions of the language model."""

    def reply_losses(
        self, fused: FusedState, replies: Sequence[Sequence[int]], num_earlier: Sequence[int] = ()
    ) -> torch.Tensor:
        """Compute the summed cross entropy of each sample's replies, their tokens, and how many of them are most probable.

        replies: a reply to each sample, as tokens with its end token; num_earlier: number of replies in its earlier turns,
        the newest, that count too, by default none. Returns float32 (batch, 3).
        """
        states, learned = self.reply_states(fused, replies, num_earlier or [0] * len(replies))
        rows, positions, wanted = (
            torch.tensor(numbers, dtype=torch.long, device=states.device)
            for numbers in (
                [one.row for one in learned for _ in one.ids],
                [one.start + within for one in learned for within in range(len(one.ids))],
                [token for one in learned for token in one.ids],
            )
        )
        losses, right = self._lm.token_losses(states[rows, positions], wanted)
        found = torch.stack([losses, torch.ones_like(losses), right], dim=1)
        return found.new_zeros(len(replies), 3).index_add(0, rows, found)


class CausalReading(PromptReading):
    """Reading of a causal language model, whose sequences are prompts followed by replies."""

    model_class = CausalModel
    _lm: CausalModel
    _renderer: PromptRenderer

    def reply_states(
        self, fused: FusedState, replies: Sequence[Sequence[int]], num_earlier: Sequence[int]
    ) -> tuple[torch.Tensor, list[LearnedReply]]:
        sequences = self.layout.lay_out(fused, [reply[:-1] for reply in replies])
        self._renderer.check_length(int(sequences.lengths.max()))
        states = self._lm.hidden_states(*self.layout.embed(fused, sequences))
        end = self._renderer.end_id
        learned = []
        for row, (reply, length) in enumerate(zip(replies, sequences.lengths.tolist(), strict=True)):
            earlier = sequences.replies[row]
            chosen = earlier[len(earlier) - min(num_earlier[row], len(earlier)) :]
            learned += [LearnedReply(row, start - 1, [*ids, end]) for start, ids in chosen]
            learned.append(LearnedReply(row, length - len(reply), reply))
        return states, learned

    def request(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> DecodeRequest:
        return DecodeRequest(self.layout.spans(inputs, dialogue), constraint=self.grammar())

    def continuation(self, ids: Sequence[int]) -> DecodeRequest:
        return DecodeRequest(list(ids))

    def prompt_embeddings(self, fused: FusedState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts, padded on the left: float (batch, length, width), and their mask, bool (batch, length)."""
        return self.layout.embed(fused, self.layout.lay_out(fused), left=True)

    def generate(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        embeddings, mask = self.prompt_embeddings(fused)
        self._renderer.check_length(embeddings.shape[1] + self._task.max_tokens)
        return self._lm.generate(embeddings, mask, stop_ids, self._task.max_tokens, self._task.decoding)

    def _check_requests(self, requests: Sequence[DecodeRequest]) -> None:
        longest = max(prompt_length(one.prompt) for one in requests)
        self._renderer.check_length(longest + self._task.max_tokens)


class VisionLanguageReading(CausalReading):
    """Reading of the language model of a vision–language model, whose image part is the encoder of an input."""

    model_class = VisionLanguageModel


class EncoderDecoderReading(PromptReading):
    """Reading of an encoder–decoder model, whose encoder reads prompts and whose decoder has the replies."""

    model_class = EncoderDecoderModel
    _lm: EncoderDecoderModel
    _renderer: SourcePromptRenderer

    def reply_states(
        self, fused: FusedState, replies: Sequence[Sequence[int]], num_earlier: Sequence[int]
    ) -> tuple[torch.Tensor, list[LearnedReply]]:
        self._renderer.check_target(max(map(len, replies)))
        states, states_mask = self._encode(fused)
        prompt = self._renderer.decoder_prompt
        sequences = [torch.tensor([*prompt, *reply[:-1]]) for reply in replies]
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(states.device)
        lengths = torch.tensor([len(one) for one in sequences], device=states.device)
        mask = torch.arange(ids.shape[1], device=states.device) < lengths.unsqueeze(1)
        hidden = self._lm.hidden_states(states, states_mask, ids, mask)
        return hidden, [LearnedReply(row, len(prompt) - 1, reply) for row, reply in enumerate(replies)]

    @torch.inference_mode()
    def request(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> DecodeRequest:
        spans = [
            span if isinstance(span, torch.Tensor) else self._embed(span)
            for span in self.layout.spans(inputs, dialogue)
        ]
        source, constraint = torch.cat(spans), self.grammar()
        return DecodeRequest(self._renderer.decoder_prompt, source=source, constraint=constraint)

    def continuation(self, ids: Sequence[int]) -> DecodeRequest:
        return DecodeRequest(self._renderer.decoder_prompt, source=torch.tensor(ids))

    def generate(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        self._renderer.check_target(self._task.max_tokens)
        states, mask = self._encode(fused)
        prompt, task = self._renderer.decoder_prompt, self._task
        return self._lm.generate(states, mask, prompt, stop_ids, task.max_tokens, task.decoding)

    def _encode(self, fused: FusedState) -> Tokens:
        """Return the encoder's states of each sample's prompt and their mask."""
        prompts = self.layout.lay_out(fused)
        self._renderer.check_source(int(prompts.lengths.max()))
        embeddings, mask = self.layout.embed(fused, prompts)
        return self._lm.encode(embeddings, mask), mask

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        return self._lm.embed(torch.tensor(ids, device=self._lm.device))

    def _check_requests(self, requests: Sequence[DecodeRequest]) -> None:
        self._renderer.check_source(max(len(one.source) for one in requests if one.source is not None))
        self._renderer.check_target(self._task.max_tokens)
