"""Generation: a text, written by a language model that reads the inputs as soft tokens and texts of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Features, Schema, object_schema
from rayfuse.modalities.messages import load_messages
from rayfuse.modalities.prompt_kinds import build_renderer
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.text import PROMPT_TEXT, decode_text
from rayfuse.model.gated_attention import GatedCrossAttention
from rayfuse.model.language_model import LanguageModel
from rayfuse.model.reply_grammar import ReplyGrammar
from rayfuse.model.slot_decoding import slot_runner
from rayfuse.model.tasks.accumulators import AccumulatedHead, Accumulator
from rayfuse.model.tasks.base import touch_fusion_params
from rayfuse.model.tasks.prompt_reading import PromptReading
from rayfuse.model.tasks.readings import reading_class
from rayfuse.model.tasks.replies import Replies, Reply, text_metrics
from rayfuse.model.tasks.text_decoding import TextDecoding
from rayfuse.model.tasks.transcript_reading import TranscriptReading
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import GenerationTaskConfig, Target
from rayfuse.spec.tasks.generation import GROUP_WIDTH
from rayfuse.spec.tasks.injection import CrossAttentionInjection

_MAX_PERPLEXITY = 1e6


class GenerationHead(AccumulatedHead):
    """Language model over the text tokens and soft tokens of a prompt.

    Raw outputs, given targets: the summed cross entropy of the reply's tokens, their number, and how many of them are the
    most probable ones, float32 (batch, 3). Generated: token ids, float32 (batch, tokens), NaN after the end token.
    targets: token ids (batch, tokens), after the two numbers of the row's group in tasks with `references`; with
    `learned_replies: all`, those of the replies in earlier turns, each with its end token, and then those of the reply.
    """

    attribution_score_name = "mean log-probability"
    reads_targets = True
    renderer: PromptRenderer
    reading: PromptReading

    def __init__(self, options: GenerationTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.options = options
        self.group_width = GROUP_WIDTH if options.references else 0
        self._reading_class = reading_class(options)
        self.lm = self._reading_class.model_class(options)
        is_speech = self._reading_class is TranscriptReading
        has_soft_tokens = not is_speech and options.inject.type == "soft_tokens"
        self.projector = _build_projector(dim, self.lm) if has_soft_tokens else None
        self.cross_attention: GatedCrossAttention | None = None
        self._dim = dim

    def attach_inputs(self, inputs: Mapping[str, Input]) -> None:
        self.renderer = build_renderer(self.options, inputs)
        inject = self.options.inject
        if isinstance(inject, CrossAttentionInjection):
            sources = inject.num_sources(inputs)
            self.cross_attention = GatedCrossAttention(inject, self._dim, sources, self.lm)
        self.reading = self._reading_class(
            self.options,
            self.lm,
            self.renderer,
            self.projector if self.cross_attention is None else self.cross_attention,
            ReplyGrammar(self.options, self.renderer, self.lm.stop_ids),
        )

    def check_context(self, span_lengths: Mapping[str, int]) -> None:
        self.reading.check_context(span_lengths)

    def check_features(self, features: Mapping[str, Sequence[Features]]) -> None:
        chat = self.renderer.chat_input
        if chat is not None and chat in features:
            self.renderer.fit_messages(load_messages(decode_text(features[chat][0][PROMPT_TEXT])))

    def forward(self, fused: FusedState, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the losses of the targets; without targets, those of the end token, which do not count."""
        rows = len(fused["vector"])
        replies = [[[self.renderer.end_id]]] * rows if targets is None else self._replies(targets)
        last = [of_row[-1] for of_row in replies]
        num_earlier = [len(of_row) - 1 for of_row in replies]
        return touch_fusion_params(self.reading.reply_losses(fused, last, num_earlier), fused)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a reply: that of the prompt's template first, then the model's own."""
        return list(dict.fromkeys([self.renderer.end_id, *self.lm.stop_ids]))

    @property
    def decoded_rows(self) -> int:
        return self.options.decoded_rows if self.options.metrics else 0

    @property
    def language_model(self) -> LanguageModel:
        return self.lm

    @property
    def soft_token_inputs(self) -> Sequence[str]:
        return self.renderer.span_inputs

    @property
    def encoded_inputs(self) -> Sequence[str]:
        return self.reading.encoded_inputs

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
            max_source_tokens=self.renderer.max_source_tokens,
            attended_inputs=self.renderer.attended_inputs,
            attends_fused=isinstance(self.options.inject, CrossAttentionInjection)
            and self.options.inject.fused,
            language=self.renderer.language,
            prompt_inputs=self.renderer.names,
            read_inputs=self.reading.inputs,
            render=self.reading.request,
            time_stamps=self.reading.time_stamps,
            continuation=self.reading.continuation,
        )

    def generate(self, fused: FusedState) -> torch.Tensor:
        return _without_padding(self.reading.decode(fused, self.stop_ids), self.stop_ids)

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
        references = [self.renderer.decode(of_row[-1]) for of_row in self._replies(targets)]
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

    def _replies(self, targets: torch.Tensor) -> list[list[list[int]]]:
        """Return the replies of each sample: those in earlier turns, if they are learned, and then the reply itself."""
        return [_split_behind(ids, self.renderer.end_id) for ids in self._tokens(targets)]

    def _tokens(self, targets: torch.Tensor) -> list[list[int]]:
        """Return the tokens of each sample's replies."""
        ids = targets[:, self.group_width :].cpu().numpy()
        return [row[~np.isnan(row)].astype(np.int64).tolist() for row in ids]

    def _texts(self, ids: torch.Tensor) -> list[str]:
        rows = ids.float().cpu().numpy()
        return [self.renderer.decode(row[~np.isnan(row)].astype(np.int64).tolist()) for row in rows]


def _split_behind(ids: Sequence[int], end: int) -> list[list[int]]:
    """Split tokens behind each end token; at least one part."""
    parts: list[list[int]] = [[]]
    for place, token in enumerate(ids):
        parts[-1].append(token)
        if token == end and place < len(ids) - 1:
            parts.append([])
    return parts


def _build_projector(dim: int, lm: LanguageModel) -> nn.Linear:
    """Return a map of aligned tokens to the width of a language model."""
    projector = nn.Linear(dim, lm.width)
    nn.init.normal_(projector.weight, std=lm.initial_std / dim**0.5)
    nn.init.zeros_(projector.bias)
    return projector


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
