"""Hierarchical fusion."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import presence_mask
from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.spec.fusion import HierarchicalFusionConfig as Options


class HierarchicalFusion(FusionModule):
    """Tree of fusions: the fusion of a group maps its members to one token, present if any member is.

    Attention is multiplied along the tree if all fusions return it. The per-input vectors of a decision-level root
    fusion are those of its direct members: groups, and inputs outside of groups.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        from rayfuse.model.fusion import build_fusion  # circular import

        super().__init__(options, dim, inputs)
        self.inputs = list(inputs)
        self.group_members = {name: options.groups[name].members for name in options.topological_order()}
        self.root_inputs = options.root_members(inputs)
        self.group_fusions = nn.ModuleList(
            build_fusion(options.groups[name].fusion, dim, members)
            for name, members in self.group_members.items()
        )
        self.root_fusion = build_fusion(options.fusion, dim, self.root_inputs)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        parts, outputs = dict(inputs), {}
        for (name, members), fusion in zip(self.group_members.items(), self.group_fusions, strict=True):
            chosen = {member: parts[member] for member in members}
            outputs[name] = fusion(chosen)
            parts[name] = outputs[name]["vector"].unsqueeze(1), presence_mask(chosen).any(dim=1, keepdim=True)
        fused: FusionOutput = self.root_fusion({name: parts[name] for name in self.root_inputs})
        if "attention" in fused and all("attention" in group for group in outputs.values()):
            return {**fused, "attention": self._propagate_attention(fused["attention"], outputs)}
        fused.pop("attention", None)
        return fused

    def _propagate_attention(
        self, attention: torch.Tensor, group_outputs: Mapping[str, FusionOutput]
    ) -> torch.Tensor:
        """Distribute the root fusion's attention (batch, root members) to (batch, inputs)."""
        weights = dict(zip(self.root_inputs, attention.unbind(dim=1), strict=True))
        for name, members in reversed(self.group_members.items()):
            attention = group_outputs[name]["attention"] * weights[name].unsqueeze(1)
            weights |= dict(zip(members, attention.unbind(dim=1), strict=True))
        return torch.stack([weights[name] for name in self.inputs], dim=1)

    def attach_heads(self, heads: Mapping[str, TaskHead]) -> None:
        self.root_fusion.attach_heads(heads)

    def apply_head(self, task: str, head: TaskHead, fused: FusedState) -> torch.Tensor:
        return self.root_fusion.apply_head(task, head, fused)
