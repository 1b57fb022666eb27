"""One input conditions the others."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import perceptron, present_means, side_by_side
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import FilmFusion as Options


class FilmFusion(FusionModule):
    """Feature-wise linear modulation (FiLM: Perez et al., 2018).

    The condition's mean scales and shifts each token of the others, in residual blocks. What they become stands
    side by side with the condition, and goes through a perceptron. Without the condition nothing is scaled.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.condition = options.condition
        self.others = [name for name in inputs if name != options.condition]
        self.blocks = nn.ModuleList(
            nn.ModuleList(FilmBlock(dim, options.dropout) for _ in range(options.blocks)) for _ in self.others
        )
        self.layers = perceptron(len(inputs) * (dim + 1), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        vectors, present = present_means({self.condition: inputs[self.condition]})
        modulated = {self.condition: inputs[self.condition]}
        for name, blocks in zip(self.others, self.blocks, strict=True):
            tokens, mask = inputs[name]
            for block in blocks:  # type: ignore[attr-defined]
                tokens = block(tokens, vectors[:, 0], present[:, 0])
            modulated[name] = tokens, mask
        return {"vector": self.layers(side_by_side(*present_means(modulated)))}


class FilmBlock(nn.Module):
    """A residual block whose features a condition scales and shifts, after a norm without a scale of its own."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, dim), the condition (batch, dim), and which samples have it, bool (batch,)."""
        modulation = self.modulation(condition).masked_fill(~there.unsqueeze(1), 0.0)
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=2)
        changed = self.norm(self.linear(tokens)) * (1 + scale) + shift
        return tokens + self.dropout(nn.functional.gelu(changed))
