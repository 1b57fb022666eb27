"""Fusion by the similarity of the inputs' tokens."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import build_mlp, presence_mask
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import CompareFusionConfig as Options

_CENTERS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)
_WIDTHS = (0.05, *[0.1] * 10)
"""Kernels of a soft histogram, as of K-NRM, whose kernel of exact matches is narrower."""
_MIN_NORM = 1e-3
"""Smaller norms are not scaled to 1, which bounds the gradient of vectors near zero."""
_MIN_WEIGHT = 0.02
"""Weight of a token that the demoted input has, too."""


class CompareFusion(FusionModule):
    """Multilayer perceptron over soft histograms of how well tokens of one input match those of another.

    For each ordered pair of inputs and each head, every token of the first has its highest cosine similarity with the
    tokens of the second (BERTScore, Zhang et al., 2020). Their distribution is pooled with Gaussian kernels (K-NRM, Xiong
    et al., 2017), as a mean over the tokens; with `demote`, also as a mean weighted by 1 - the highest similarity with
    the tokens of that input. Presence flags follow. A pair with an absent input has zeros, and an absent demoted input
    leaves the weights equal.
    """

    centers: torch.Tensor
    widths: torch.Tensor

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.heads = options.heads
        self.demote = options.demote
        self.pairs = list(permutations([name for name in inputs if name != options.demote], 2))
        self.register_buffer("centers", torch.tensor(_CENTERS), persistent=False)
        self.register_buffer("widths", torch.tensor(_WIDTHS), persistent=False)
        histograms = len(self.pairs) * (1 if options.demote is None else 2)
        self.layers = build_mlp(histograms * options.heads * len(_CENTERS) + len(inputs), options, dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        units = {name: (self._unit_vectors(tokens), mask) for name, (tokens, mask) in inputs.items()}
        features = [
            self._histogram(units[first], units[second], weights)
            for first, second in self.pairs
            for weights in self._token_weights(units, first)
        ]
        present = presence_mask(inputs).float()
        return {"vector": self.layers(torch.cat([*features, present], dim=1))}

    def _unit_vectors(self, tokens: torch.Tensor) -> torch.Tensor:
        """Split tokens (batch, tokens, dim) to heads, scaled to norm 1: float32 (batch, heads, tokens, dim / heads)."""
        parts = tokens.float().unflatten(2, (self.heads, -1)).transpose(1, 2)
        return nn.functional.normalize(parts, dim=3, eps=_MIN_NORM)

    def _token_weights(self, units: dict[str, Tokens], name: str) -> list[torch.Tensor]:
        """Return the weights of an input's tokens, (batch, heads, tokens): equal, and with `demote` also demoted."""
        vectors, mask = units[name]
        equal = mask.unsqueeze(1).expand(vectors.shape[:3]).float()
        if self.demote is None:
            return [equal]
        present = units[self.demote][1].any(dim=1)[:, None, None]
        novelty = (1 - _best_match(vectors, units[self.demote])).clamp(min=_MIN_WEIGHT)
        return [equal, equal * torch.where(present, novelty, 1.0)]

    def _histogram(self, first: Tokens, second: Tokens, weights: torch.Tensor) -> torch.Tensor:
        """Pool the matches of the first input's tokens to (batch, heads × kernels); zeros if an input is absent."""
        matches = _best_match(first[0], second).unsqueeze(3)
        kernels = torch.exp(-((matches - self.centers) ** 2) / (2 * self.widths**2))
        total = weights.sum(dim=2, keepdim=True).clamp(min=_MIN_WEIGHT)
        pooled = (kernels * (weights / total).unsqueeze(3)).sum(dim=2).flatten(1)
        both = first[1].any(dim=1) & second[1].any(dim=1)
        return torch.where(both.unsqueeze(1), pooled, 0.0)


def _best_match(vectors: torch.Tensor, others: Tokens) -> torch.Tensor:
    """Return the highest cosine similarity of each vector with the unmasked ones of another input, (batch, heads, tokens).

    vectors: unit vectors (batch, heads, tokens, width); -1 for each of them if the other input is absent.
    """
    candidates, mask = others
    cosines = (vectors @ candidates.transpose(2, 3)).float()
    return cosines.masked_fill(~mask[:, None, None], -1.0).amax(dim=3)
