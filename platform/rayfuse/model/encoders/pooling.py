"""How an encoder's tokens become one vector: see `rayfuse.spec.encoders.Pool`."""

from collections.abc import Callable

import torch
from torch import nn

from rayfuse.model.tokens import Tokens


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return weighted_mean(tokens, mask.to(tokens.dtype))


def _first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _at(tokens, mask.to(torch.int64).argmax(1))


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last that counts: in a causal model, the only one that has seen all others."""
    return _at(tokens, tokens.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(1))


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(~mask.unsqueeze(2), torch.finfo(tokens.dtype).min).amax(1)


_POOLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "first": _first,
    "last": _last,
    "max": _max,
}


class Pooling(nn.Module):
    """Tokens (rows, tokens, width) and their mask → one token, or with `none` the same tokens.

    `attention` learns the weight of each token (Lin et al., 2017). A row without any token that counts gets a zero
    vector that does not count either.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        if self.kind == "none":
            return tokens, mask
        some = mask.any(dim=1, keepdim=True)
        vectors = self._weigh(tokens, mask) if self.kind == "attention" else _POOLS[self.kind](tokens, mask)
        return (vectors * some).unsqueeze(1), some

    def _weigh(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.score(tokens).squeeze(2).float()
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(1)
        return weighted_mean(tokens, (weights * mask).to(tokens.dtype))


def weighted_mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """float (rows, width); weights: (rows, tokens), not negative, 0 for what does not count."""
    total = weights.sum(1, keepdim=True)
    return (tokens * weights.unsqueeze(2)).sum(1) / total.masked_fill(total == 0, 1)


def _at(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), positions]
