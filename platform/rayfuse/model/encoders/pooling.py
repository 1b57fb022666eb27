"""Pooling of tokens to one vector, by the values of `rayfuse.spec.encoders.Pool`."""

from collections.abc import Callable

import torch
from torch import nn

from rayfuse.model.tokens import Tokens


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return weighted_mean(tokens, mask.to(tokens.dtype))


def _first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _select_positions(tokens, mask.to(torch.int64).argmax(1))


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the last unmasked token, the only one that attends to all others in a causal model."""
    return _select_positions(tokens, tokens.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(1))


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(~mask.unsqueeze(2), torch.finfo(tokens.dtype).min).amax(1)


_POOLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "first": _first,
    "last": _last,
    "max": _max,
}


class Pooling(nn.Module):
    """Pooling of tokens (rows, tokens, width) with their mask to (rows, 1, width); `none` returns them unchanged.

    `attention` learns the weight of each token (Lin et al., 2017). A row whose tokens are all masked gets a masked
    zero vector.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        if self.kind == "none":
            return tokens, mask
        present = mask.any(dim=1, keepdim=True)
        vectors = (
            self._attention_pool(tokens, mask)
            if self.kind == "attention"
            else _POOLS[self.kind](tokens, mask)
        )
        return (vectors * present).unsqueeze(1), present

    def _attention_pool(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.score(tokens).squeeze(2).float()
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1)
        return weighted_mean(tokens, (weights * mask).to(tokens.dtype))


def weighted_mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of tokens, float (rows, width); zeros if all weights are.

    weights: (rows, tokens), not negative, 0 for masked tokens.
    """
    total = weights.sum(1, keepdim=True)
    return (tokens * weights.unsqueeze(2)).sum(1) / total.masked_fill(total == 0, 1)


def _select_positions(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), positions]
