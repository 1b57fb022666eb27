"""What fusions at decision level share: each input forms an opinion, and the task's head is asked for each."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import ResidualBlock, equal_shares, present_means
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused, Tokens
from rayfuse.spec.fusion import DecisionFusion as Options


class DecisionFusion(FusionModule):
    """Opinions of the inputs, each by itself; what is to be done with the answers is left to its children.

    The opinion of an absent input is a learned one that is asked only where a sample has no input at all.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.own = nn.ModuleList(ResidualBlock(dim, options.hidden, options.dropout) for _ in inputs)
        self.prior = nn.Parameter(torch.zeros(dim))

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = present_means(inputs)
        said = torch.stack([own(v) for own, v in zip(self.own, vectors.unbind(dim=1), strict=True)], dim=1)
        opinions = torch.where(present.unsqueeze(2), said, self.prior)
        trust = self.trust(present)
        vector = (opinions * or_equal(trust).unsqueeze(2)).sum(dim=1)
        return {"vector": vector, "opinions": opinions, "trust": trust}

    def answer(self, task: str, head: TaskHead, fused: Fused) -> torch.Tensor:
        asked: list[Fused] = [{**fused, "vector": opinion} for opinion in fused["opinions"].unbind(dim=1)]
        answers = torch.stack([head(one) for one in asked], dim=1)
        return self.decide(task, head, answers, fused["trust"] > 0)

    def trust(self, present: torch.Tensor) -> torch.Tensor:
        """The weight of each opinion, float (batch, inputs): 0 for absent inputs, rows sum to 1 (or 0)."""
        return equal_shares(present)

    @abstractmethod
    def decide(self, task: str, head: TaskHead, answers: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """The head's raw outputs for each input, (batch, inputs, …), and which are there → (batch, …)."""


def or_equal(trust: torch.Tensor) -> torch.Tensor:
    """The same, but that a sample without any input trusts all opinions, which are one, alike."""
    return torch.where((trust > 0).any(dim=1, keepdim=True), trust, 1 / trust.shape[1])
