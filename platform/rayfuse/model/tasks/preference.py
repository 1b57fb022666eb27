"""Preference: a language model that learns from pairs of a better and a worse reply."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from rayfuse.model.tasks.base import touch_fusion_params
from rayfuse.model.tasks.generation import GenerationHead, TokenAccumulator
from rayfuse.model.tasks.replies import Reply
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import PreferenceTaskConfig, Target
from rayfuse.spec.tasks.generation import GROUP_WIDTH

_BETTER, _WORSE = 0, 1


class PreferenceHead(GenerationHead):
    """Language model trained by direct preference optimization (DPO; Rafailov et al., 2023).

    Raw outputs, given targets: those of `GenerationHead` for the better reply, then the summed cross entropy of the worse
    reply, and those of the better and the worse reply without adapters, float32 (batch, 6). targets: after the row's
    group, token ids of both replies in turns, -1 after the end of the shorter one.
    """

    options: PreferenceTaskConfig

    def forward(self, fused: FusedState, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the losses of both replies, with and without adapters; without targets, of the end token."""
        ends = [[self.renderer.end_id]] * len(fused["vector"])
        better, worse = (
            ends if targets is None else self._tokens(self._replies_of(targets, which))
            for which in (_BETTER, _WORSE)
        )
        with torch.no_grad(), self.reading.reference():
            references = [self.reading.reply_losses(fused, replies)[:, :1] for replies in (better, worse)]
        outputs = [
            self.reading.reply_losses(fused, better),
            self.reading.reply_losses(fused, worse)[:, :1],
            *references,
        ]
        return touch_fusion_params(torch.cat(outputs, dim=1), fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each pair, float32 (batch,)."""
        loss = -logsigmoid(self.reward_margins(outputs))
        if self.options.sft_weight:
            loss = loss + self.options.sft_weight * outputs[:, 0] / outputs[:, 1].clamp(min=1)
        return loss

    def reward_margins(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return by how much the implicit reward of the better reply exceeds that of the worse one, float32 (batch,)."""
        better, _, _, worse, reference_better, reference_worse = outputs.unbind(dim=1)
        return self.options.beta * ((reference_better - better) - (reference_worse - worse))

    def loss_weights(self, targets: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(targets), device=targets.device)

    def accumulator(self) -> "PairAccumulator":
        return PairAccumulator()

    def as_targets(self, generated: torch.Tensor) -> torch.Tensor:
        """Return targets without worse replies."""
        worse = torch.where(generated.isnan(), torch.nan, -1.0)
        group = generated.new_full((len(generated), self.group_width), torch.nan)
        return torch.cat([group, torch.stack([generated, worse], dim=2).flatten(1)], dim=1)

    def read_replies(self, generated: torch.Tensor, targets: torch.Tensor) -> list[Reply]:
        return super().read_replies(generated, self._replies_of(targets, _BETTER))

    @classmethod
    def dummy_target(cls, config: PreferenceTaskConfig, inputs: Mapping[str, Input]) -> Target:  # type: ignore[override]
        group = [float("nan")] * (GROUP_WIDTH if config.references else 0)
        return [*group, *[0.0] * (2 * config.max_tokens)]

    def _replies_of(self, targets: torch.Tensor, which: int) -> torch.Tensor:
        """Return the targets that `GenerationHead` has for one of the replies, padded with NaN."""
        ids = targets[:, self.group_width + which :: 2]
        return torch.cat([targets[:, : self.group_width], ids.masked_fill(ids < 0, torch.nan)], dim=1)


class PairAccumulator(TokenAccumulator):
    """Sums over the tokens of the better replies, and over the pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.margins = np.zeros(2)
        """Sum of the reward margins, and number of pairs whose margin is positive."""
        self.pairs = 0
        """Number of pairs."""

    def update(self, head: GenerationHead, outputs: np.ndarray, targets: np.ndarray) -> None:
        assert isinstance(head, PreferenceHead)
        super().update(head, outputs[:, :3], targets)
        margins = head.reward_margins(torch.from_numpy(outputs)).double().numpy()
        self.margins += margins.sum(), (margins > 0).sum()
        self.pairs += len(margins)

    def merge(self, other: TokenAccumulator) -> None:
        assert isinstance(other, PairAccumulator)
        super().merge(other)
        self.margins += other.margins
        self.pairs += other.pairs

    def metrics(self, head: GenerationHead) -> dict[str, float]:
        margin, accuracy = (self.margins / max(1, self.pairs)).tolist()
        return {**super().metrics(head), "reward_accuracy": accuracy, "reward_margin": margin}

    def details(self, head: GenerationHead) -> dict[str, Any]:
        return {**super().details(head), "pairs": self.pairs}
