"""What passes between the parts of a fused model: plain tensors in tuples and dicts, which DeepSpeed's hooks see."""

from typing import NotRequired, TypedDict

import torch

Tokens = tuple[torch.Tensor, torch.Tensor]
"""Vectors, float (rows, tokens, width), and which of them count, bool (rows, tokens)."""


class Fused(TypedDict):
    """What tasks answer from."""

    vector: torch.Tensor
    """float (batch, dim): the whole sample."""
    inputs: dict[str, Tokens]
    """Each aligned input: float (batch, tokens, dim) and bool (batch, tokens)."""
    words: dict[str, torch.Tensor]
    """For inputs of words: int64 (batch, words), the token where each begins, -1 for padding."""
    attention: NotRequired[torch.Tensor]
    """float (batch, inputs): how much the fusion looked at each input; rows sum to 1."""
    opinions: NotRequired[torch.Tensor]
    """float (batch, inputs, dim): for fusions at decision level, what each input says on its own."""
    trust: NotRequired[torch.Tensor]
    """float (batch, inputs): the weight of each opinion; 0 for absent inputs, rows sum to 1 (or 0)."""


def one_token(vectors: torch.Tensor) -> Tokens:
    """Vectors (rows, width) as one token each."""
    return vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device)


def mean_token(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of the tokens that count, float (rows, width); the first token, a placeholder, where none does."""
    weights = mask.to(tokens.dtype).unsqueeze(2)
    mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.where(mask.any(dim=1, keepdim=True), mean, tokens[:, 0])
