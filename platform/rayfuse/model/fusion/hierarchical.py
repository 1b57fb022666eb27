"""A tree of fusions."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import presence
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused, Tokens
from rayfuse.spec.fusion import HierarchicalFusion as Options


class HierarchicalFusion(FusionModule):
    """Each group's fusion makes one token of its members, which is there where any of them is.

    Attention is handed down the tree, where all of its fusions have some. Where the last fusion is at decision
    level, its opinions are those of what it joins: groups, and inputs that are in none.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        from rayfuse.model.fusion import build_fusion  # which knows this class, too

        super().__init__(options, dim, inputs)
        self.inputs = list(inputs)
        self.members = {name: options.groups[name].members for name in options.ordered()}
        self.joined_last = options.last(inputs)
        self.groups = nn.ModuleList(
            build_fusion(options.groups[name].fusion, dim, members) for name, members in self.members.items()
        )
        self.last = build_fusion(options.fusion, dim, self.joined_last)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        parts, inner = dict(inputs), {}
        for (name, members), fusion in zip(self.members.items(), self.groups, strict=True):
            chosen = {member: parts[member] for member in members}
            inner[name] = fusion(chosen)
            parts[name] = inner[name]["vector"].unsqueeze(1), presence(chosen).any(dim=1, keepdim=True)
        joined: Joined = self.last({name: parts[name] for name in self.joined_last})
        if "attention" in joined and all("attention" in group for group in inner.values()):
            return {**joined, "attention": self._handed_down(joined["attention"], inner)}
        joined.pop("attention", None)
        return joined

    def _handed_down(self, attention: torch.Tensor, inner: Mapping[str, Joined]) -> torch.Tensor:
        """The last fusion's attention (batch, what it joins) → (batch, inputs)."""
        weights = dict(zip(self.joined_last, attention.unbind(dim=1), strict=True))
        for name, members in reversed(self.members.items()):
            shares = inner[name]["attention"] * weights[name].unsqueeze(1)
            weights |= dict(zip(members, shares.unbind(dim=1), strict=True))
        return torch.stack([weights[name] for name in self.inputs], dim=1)

    def attach(self, heads: Mapping[str, TaskHead]) -> None:
        self.last.attach(heads)

    def answer(self, task: str, head: TaskHead, fused: Fused) -> torch.Tensor:
        return self.last.answer(task, head, fused)
