"""Generation: a text, written by a causal language model that reads the inputs as soft tokens and texts of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.modalities.prompts import Dialogue, Piece, PromptRenderer
from rayfuse.model.language_model import LanguageModel, generate_tokens
from rayfuse.model.reply_grammar import ReplyGrammar
from rayfuse.model.slot_decoding import PromptSpans, decode_tokens, slot_runner
from rayfuse.model.tasks.accumulators import AccumulatedHead, Accumulator
from rayfuse.model.tasks.base import touch_fusion_params
from rayfuse.model.tasks.replies import Replies, Reply, text_metrics
from rayfuse.model.tasks.text_decoding import PromptInputs, TextDecoding
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import GenerationTaskConfig, Target
from rayfuse.spec.tasks.generation import GROUP_WIDTH

_MAX_PERPLEXITY = 1e6


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of a batch, each a sequence of places in a pool of vectors: its text tokens, then all soft tokens."""

    token_ids: np.ndarray
    """Text tokens of all rows, int64 (tokens,): the first vectors of the pool."""
    places: list[np.ndarray]
    """Places of each row's vectors, int64 (length,)."""

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 (rows,)."""
        return np.array([len(row) for row in self.places])

    def pad(self, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places padded to the longest row, int64 (rows, longest), and their mask, bool (rows, longest)."""
        longest = int(self.lengths.max())
        columns = np.arange(longest)
        from_end = columns[::-1] if left else columns
        mask = from_end < self.lengths[:, None]
        index = np.zeros(mask.shape, dtype=np.int64)
        index[mask] = np.concatenate(self.places)
        return torch.from_numpy(index), torch.from_numpy(mask)


class GenerationHead(AccumulatedHead):
    """Causal language model over the text tokens and soft tokens of a prompt.

    Raw outputs, given targets: the summed cross entropy of the reply's tokens, their number, and how many of them are the
    most probable ones, float32 (batch, 3). Generated: token ids, float32 (batch, tokens), NaN after the end token.
    targets: token ids (batch, tokens), after the two numbers of the row's group in tasks with `references`.
    """

    attribution_score_name = "mean log-probability"
    reads_targets = True
    renderer: PromptRenderer

    def __init__(self, options: GenerationTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.options = options
        self.group_width = GROUP_WIDTH if options.references else 0
        self.lm = LanguageModel(options)
        self.projector = nn.Linear(dim, self.lm.width)
        nn.init.normal_(self.projector.weight, std=self.lm.initial_std / dim**0.5)
        nn.init.zeros_(self.projector.bias)

    def attach_inputs(self, inputs: Mapping[str, Input]) -> None:
        self.renderer = PromptRenderer(self.options, inputs)
        self.grammar = ReplyGrammar(self.options, self.renderer, self.lm.stop_ids)

    def check_context(self, span_lengths: Mapping[str, int]) -> None:
        """Raise DataError if the longest prompt and reply exceed the positions of the language model.

        span_lengths: largest number of soft tokens of each input.
        """
        spans = sum(span_lengths.get(name, 0) for name in self.renderer.span_inputs)
        _check_length(self, self.renderer.max_text_tokens + spans)

    def forward(self, fused: FusedState, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the losses of the targets; without targets, those of the end token, which do not count."""
        rows = len(fused["vector"])
        replies = [[self.renderer.end_id]] * rows if targets is None else self._replies(targets)
        return touch_fusion_params(self.reply_losses(fused, replies), fused)

    def reply_losses(self, fused: FusedState, replies: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute the raw outputs of one reply per sample, given as tokens with its end token."""
        rows = len(replies)
        prompts = self._prompt_batch(fused, [reply[:-1] for reply in replies])
        embeddings, mask = self._embed(fused, prompts, left=False)
        counts = np.array([len(reply) for reply in replies])
        row_of_token = np.arange(rows).repeat(counts)
        within = np.concatenate([np.arange(count) for count in counts])
        positions = (prompts.lengths - counts)[row_of_token] + within
        device = embeddings.device
        row_index = torch.from_numpy(row_of_token).to(device)
        wanted = torch.tensor(
            [token for reply in replies for token in reply], dtype=torch.long, device=device
        )
        hidden = self.lm.hidden_states(embeddings, mask)[row_index, torch.from_numpy(positions).to(device)]
        losses, right = self.lm.token_losses(hidden, wanted)
        found = torch.stack([losses, torch.ones_like(losses), right], dim=1)
        return found.new_zeros(rows, 3).index_add(0, row_index, found)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply: that of the prompt's template first, then the model's own."""
        return list(dict.fromkeys([self.renderer.end_id, *self.lm.stop_ids]))

    @property
    def decoded_rows(self) -> int:
        return self.options.decoded_rows

    @property
    def language_model(self) -> LanguageModel:
        return self.lm

    @property
    def soft_token_inputs(self) -> Sequence[str]:
        return self.renderer.span_inputs

    @property
    def text_decoding(self) -> TextDecoding | None:
        runner = slot_runner(self.lm, self.options.decoding)
        if runner is None:
            return None
        return TextDecoding(
            runner=runner,
            tokenizer=self.renderer.tokenizer,
            stop_ids=self.stop_ids,
            max_tokens=self.options.max_tokens,
            options=self.options.decoding,
            constraint=self.grammar,
            prompt_inputs=self.renderer.names,
            read_inputs=self._prompt_inputs,
            render=self._prompt,
        )

    def prompt_embeddings(self, fused: FusedState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts, padded on the left: float (batch, length, width), and their mask, bool (batch, length)."""
        prompts = self._prompt_batch(fused, [[]] * len(fused["vector"]))
        return self._embed(fused, prompts, left=True)

    def generate(self, fused: FusedState) -> torch.Tensor:
        settings = self.stop_ids, self.options.max_tokens, self.options.decoding
        runner = slot_runner(self.lm, self.options.decoding)
        if runner is not None:
            prompts = [self._prompt(one) for one in self._prompt_inputs(fused)]
            _check_length(self, max(sum(map(len, one)) for one in prompts) + self.options.max_tokens)
            found = decode_tokens(runner, prompts, *settings, self.grammar)
        else:
            embeddings, mask = self.prompt_embeddings(fused)
            _check_length(self, embeddings.shape[1] + self.options.max_tokens)
            found = generate_tokens(self.lm, embeddings, mask, *settings)
        return _without_padding(found, self.stop_ids)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed cross entropy of each sample's reply, float32 (batch,)."""
        return outputs[:, 0]

    def loss_weights(self, targets: torch.Tensor) -> torch.Tensor:
        return (~targets[:, self.group_width :].isnan()).sum(dim=1).float()

    def attribution_score(
        self, outputs: torch.Tensor, reference_outputs: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the mean log-probability of the reply's tokens, float (batch,)."""
        return -outputs[:, 0] / outputs[:, 1].clamp(min=1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"text": reply} for each sample, from generated tokens."""
        return [{"text": text} for text in self._texts(outputs)]

    def accumulator(self) -> "TokenAccumulator":
        return TokenAccumulator()

    def as_targets(self, generated: torch.Tensor) -> torch.Tensor:
        group = generated.new_full((len(generated), self.group_width), torch.nan)
        return torch.cat([group, generated], dim=1)

    def read_replies(self, generated: torch.Tensor, targets: torch.Tensor) -> list[Reply]:
        """Return the generated text of each sample next to its reference."""
        references = self._texts(targets[:, self.group_width :])
        texts = self._texts(generated)
        return [
            Reply(*one)
            for one in zip(texts, references, _groups(targets[:, : self.group_width]), strict=True)
        ]

    def reply_metrics(self, replies: Replies) -> dict[str, float]:
        """Compute the metrics of decoded replies."""
        return text_metrics(self.options.metrics, replies, self.options.normalize)

    @classmethod
    def response_schema(cls, config: GenerationTaskConfig) -> Schema:
        return object_schema({"text": {"type": "string"}})

    @classmethod
    def dummy_target(cls, config: GenerationTaskConfig, inputs: Mapping[str, Input]) -> Target:
        group = [float("nan")] * (GROUP_WIDTH if config.references else 0)
        return [*group, *[0.0] * config.max_tokens]

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        return str(prediction["text"])

    def _replies(self, targets: torch.Tensor) -> list[list[int]]:
        ids = targets[:, self.group_width :].cpu().numpy()
        return [row[~np.isnan(row)].astype(np.int64).tolist() for row in ids]

    def _texts(self, ids: torch.Tensor) -> list[str]:
        rows = ids.float().cpu().numpy()
        return [self.renderer.decode(row[~np.isnan(row)].astype(np.int64).tolist()) for row in rows]

    def _prompt_batch(self, fused: FusedState, replies: Sequence[Sequence[int]]) -> PromptBatch:
        """Lay out prompts, each followed by the tokens of a reply, in a pool of vectors."""
        spans = self._span_masks(fused)
        rendered = [[*pieces, reply] for pieces, reply in zip(self._rendered(fused), replies, strict=True)]
        text_pieces = [piece for pieces in rendered for piece in pieces if not isinstance(piece, str)]
        offset = sum(map(len, text_pieces))
        places_of_span = {}
        for name, mask in spans.items():
            places_of_span[name] = offset + np.arange(mask.size).reshape(mask.shape)
            offset += mask.size
        places, first = [], 0
        for row, pieces in enumerate(rendered):
            parts = []
            for piece in pieces:
                if isinstance(piece, str):
                    parts.append(places_of_span[piece][row][spans[piece][row]])
                else:
                    parts.append(np.arange(first, first + len(piece)))
                    first += len(piece)
            places.append(np.concatenate(parts))
        token_ids = np.array([token for piece in text_pieces for token in piece], dtype=np.int64)
        return PromptBatch(token_ids, places)

    def _rendered(self, fused: FusedState) -> list[list[Piece]]:
        """Return the pieces of each sample's prompt."""
        masks = self._span_masks(fused)
        return [
            self._render(texts, frozenset(name for name, mask in masks.items() if mask[row].any()))
            for row, texts in enumerate(self._prompt_texts(fused))
        ]

    def _prompt_inputs(self, fused: FusedState) -> list[PromptInputs]:
        tokens = {name: fused["inputs"][name] for name in self.renderer.span_inputs}
        soft = {name: (self.projector(vectors), mask) for name, (vectors, mask) in tokens.items()}
        return [
            PromptInputs(
                texts,
                {name: vectors[row][mask[row]] for name, (vectors, mask) in soft.items() if mask[row].any()},
            )
            for row, texts in enumerate(self._prompt_texts(fused))
        ]

    def _prompt(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> PromptSpans:
        pieces = self._render(inputs.texts, frozenset(inputs.soft_tokens), dialogue)
        return [inputs.soft_tokens[one] if isinstance(one, str) else one for one in pieces if one]

    def _render(
        self, texts: Mapping[str, str], spans: frozenset[str], dialogue: Dialogue | None = None
    ) -> list[Piece]:
        pieces = self.renderer.render(texts, spans, dialogue)
        return [[self.renderer.tokenizer.eos_token_id]] if pieces == [[]] else pieces  # to predict from

    def _prompt_texts(self, fused: FusedState) -> list[dict[str, str]]:
        """Return the texts of each sample's prompt, by input; absent ones are left out."""
        found: list[dict[str, str]] = [{} for _ in range(len(fused["vector"]))]
        for name in self.renderer.text_inputs:
            if name not in fused.get("texts", {}):
                continue
            present = fused["inputs"][name][1].any(dim=1).tolist()
            for row, content in enumerate(fused["texts"][name].cpu().numpy()):
                if present[row]:
                    found[row][name] = content[content >= 0].astype(np.uint8).tobytes().decode()
        return found

    def _span_masks(self, fused: FusedState) -> dict[str, np.ndarray]:
        """Return which soft tokens each sample has, by input: bool (batch, tokens)."""
        return {name: fused["inputs"][name][1].cpu().numpy() for name in self.renderer.span_inputs}

    def _embed(
        self, fused: FusedState, prompts: PromptBatch, left: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the padded embeddings of prompts, float (batch, length, width), 0 at padding, and their mask."""
        index, mask = prompts.pad(left)
        _check_length(self, index.shape[1])
        device = fused["vector"].device
        texts = self.lm.embed(torch.from_numpy(prompts.token_ids).to(device))
        # Absent inputs take part, so that all parameters get a gradient and all ranks run the same modules.
        soft = [fused["inputs"][name][0].flatten(0, 1) for name in self.renderer.span_inputs]
        projected = self.projector(torch.cat([*soft, torch.zeros_like(fused["vector"][:1])]))
        pool = torch.cat([texts, projected.to(texts.dtype)])
        mask = mask.to(device)
        return pool[index.to(device)] * mask.unsqueeze(2), mask


def _check_length(head: GenerationHead, length: int) -> None:
    """Raise DataError if a sequence of `length` tokens exceeds the positions of the language model."""
    head.renderer.check_length(length, head.lm.max_positions)


def _without_padding(tokens: torch.Tensor, stop_ids: Sequence[int]) -> torch.Tensor:
    """Return tokens as float32 with NaN after the first token that ends a reply."""
    ended = torch.isin(tokens, torch.tensor(stop_ids, device=tokens.device)).int().cumsum(dim=1)
    after_end = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) > 0
    return tokens.float().masked_fill(after_end, torch.nan)


def _groups(numbers: torch.Tensor) -> list[tuple[float, ...] | None]:
    """Return the group of each sample; None for those without one."""
    found = numbers.cpu().numpy()
    return [None if not len(row) or np.isnan(row).any() else tuple(row.tolist()) for row in found]


class TokenAccumulator(Accumulator[GenerationHead]):
    """Sums over the tokens of the references."""

    def __init__(self) -> None:
        self.sums = np.zeros(3)
        """Cross entropy, number of tokens, and number of tokens that are the most probable ones."""

    def update(self, head: GenerationHead, outputs: np.ndarray, targets: np.ndarray) -> None:
        self.sums += outputs.astype(np.float64).sum(axis=0)

    def merge(self, other: "TokenAccumulator") -> None:
        self.sums += other.sums

    def metrics(self, head: GenerationHead) -> dict[str, float]:
        loss, tokens, right = self.sums
        perplexity = np.exp(min(loss / max(1, tokens), np.log(_MAX_PERPLEXITY)))
        return {"perplexity": float(perplexity), "token_accuracy": float(right / max(1, tokens))}

    def details(self, head: GenerationHead) -> dict[str, Any]:
        return {"tokens": int(self.sums[1])}
