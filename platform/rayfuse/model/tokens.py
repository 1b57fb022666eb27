"""Types passed between the parts of a fused model: tuples and dicts of tensors, which DeepSpeed's hooks can read."""

from typing import NotRequired, TypedDict

import torch

Tokens = tuple[torch.Tensor, torch.Tensor]
"""Vectors, float (rows, tokens, width), and their mask, bool (rows, tokens): False for padding and absent values."""


class FusedState(TypedDict):
    """Output of a fusion with the aligned inputs: what task heads read."""

    vector: torch.Tensor
    """Fused representation, float (batch, dim)."""
    inputs: dict[str, Tokens]
    """Aligned tokens of each input: float (batch, tokens, dim) and mask, bool (batch, tokens)."""
    encoded: NotRequired[dict[str, Tokens]]
    """Tokens of inputs as their encoders return them, for heads that ask for them (`TaskHead.encoded_inputs`): float
    (batch, tokens, width), 0 where the input is absent, and mask, bool (batch, tokens)."""
    items: NotRequired[dict[str, torch.Tensor]]
    """Presence of each value of an input, by input: bool (batch, items)."""
    word_starts: dict[str, torch.Tensor]
    """For inputs of words: index of each word's first token, int64 (batch, words), -1 for padding."""
    texts: NotRequired[dict[str, torch.Tensor]]
    """For texts of a prompt: UTF-8 bytes, int64 (batch, bytes), -1 for padding; meaningless where the input is absent."""
    attention: NotRequired[torch.Tensor]
    """Attention of the fusion to each input, float (batch, inputs); rows sum to 1."""
    per_input_vectors: NotRequired[torch.Tensor]
    """Representation from each input alone, float (batch, inputs, dim); only of decision-level fusions."""
    decision_weights: NotRequired[torch.Tensor]
    """Weight of each input's prediction, float (batch, inputs): 0 for absent inputs; rows sum to 1, or 0 without inputs."""


def as_single_token(vectors: torch.Tensor) -> Tokens:
    """Convert vectors, float (rows, width), to one unmasked token each."""
    return vectors.unsqueeze(1), torch.ones(vectors.shape[0], 1, dtype=torch.bool, device=vectors.device)


def mean_pool(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of unmasked tokens, float (rows, width); the first token, a placeholder, if all are masked."""
    weights = mask.to(tokens.dtype).unsqueeze(2)
    mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.where(mask.any(dim=1, keepdim=True), mean, tokens[:, 0])
