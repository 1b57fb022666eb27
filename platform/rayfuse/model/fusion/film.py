"""FiLM fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, concat_with_presence, mean_pool_present
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import FilmFusionConfig as Options


class FilmFusion(FusionModule):
    """Feature-wise linear modulation (FiLM, Perez et al., 2018).

    The mean of the conditioning input scales and shifts each token of the others, in residual blocks. A multilayer
    perceptron reads the concatenated means of all inputs. If the conditioning input is absent, scale is 1 and shift 0.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.conditioned_on = options.conditioned_on
        self.modulated_inputs = [name for name in inputs if name != options.conditioned_on]
        self.blocks = nn.ModuleList(
            nn.ModuleList(FilmBlock(dim, options.dropout) for _ in range(options.blocks))
            for _ in self.modulated_inputs
        )
        self.layers = build_mlp(len(inputs) * (dim + 1), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present({self.conditioned_on: inputs[self.conditioned_on]})
        modulated = {self.conditioned_on: inputs[self.conditioned_on]}
        for name, blocks in zip(self.modulated_inputs, self.blocks, strict=True):
            tokens, mask = inputs[name]
            for block in blocks:  # type: ignore[attr-defined]
                tokens = block(tokens, vectors[:, 0], present[:, 0])
            modulated[name] = tokens, mask
        return {"vector": self.layers(concat_with_presence(*mean_pool_present(modulated)))}


class FilmBlock(nn.Module):
    """Residual block whose normalized features are scaled and shifted by a condition."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Modulate tokens (batch, tokens, dim) by the condition (batch, dim); present: bool (batch,)."""
        modulation = self.modulation(condition).masked_fill(~present.unsqueeze(1), 0.0)
        scale, shift = modulation.unsqueeze(1).chunk(2, dim=2)
        modulated = self.norm(self.linear(tokens)) * (1 + scale) + shift
        return tokens + self.dropout(nn.functional.gelu(modulated))
