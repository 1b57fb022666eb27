"""Layers and functions that several fusions share."""

import torch
from torch import nn

from rayfuse.model.tokens import Tokens, mean_pool
from rayfuse.spec.fusion import PerceptronFusionConfig


def mean_pool_inputs(inputs: dict[str, Tokens]) -> torch.Tensor:
    """Return the mean of each input's tokens, float (batch, inputs, dim); its placeholder if absent."""
    return torch.stack([mean_pool(tokens, mask) for tokens, mask in inputs.values()], dim=1)


def presence_mask(inputs: dict[str, Tokens]) -> torch.Tensor:
    """Return which inputs each sample has, bool (batch, inputs)."""
    return torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1)


def mean_pool_present(inputs: dict[str, Tokens]) -> Tokens:
    """Return the mean of each input's tokens, float (batch, inputs, dim), 0 if absent, and presence_mask."""
    present = presence_mask(inputs)
    return mean_pool_inputs(inputs).masked_fill(~present.unsqueeze(2), 0.0), present


def concat_with_presence(vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Concatenate (batch, inputs, dim) and presence, bool (batch, inputs), to (batch, inputs × (dim + 1))."""
    return torch.cat([vectors, present.to(vectors.dtype).unsqueeze(2)], dim=2).flatten(1)


def masked_softmax(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Compute the softmax over the present inputs: float (batch, inputs, …), 0 for absent inputs.

    scores: float (batch, inputs, …); present: bool (batch, inputs). A sample without any input gets zeros.
    """
    absent = ~present.view(*present.shape, *[1] * (scores.ndim - 2))
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(absent, lowest).softmax(dim=1).masked_fill(absent, 0.0)


def uniform_weights(present: torch.Tensor) -> torch.Tensor:
    """Return equal weights of the present inputs, float (batch, inputs), 0 for absent ones."""
    return masked_softmax(torch.zeros(present.shape, device=present.device), present)


def build_mlp(width: int, options: PerceptronFusionConfig, dim: int) -> nn.Sequential:
    """Build a multilayer perceptron (rows, width) → (rows, dim) with the hidden layers of the options."""
    layers: list[nn.Module] = []
    for _ in range(options.layers):
        layers += [nn.Linear(width, options.hidden), nn.GELU(), nn.Dropout(options.dropout)]
        width = options.hidden
    return nn.Sequential(*layers, nn.Linear(width, dim))


class ResidualBlock(nn.Module):
    """Pre-norm residual block with one hidden layer."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + self.layers(vectors)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al., 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self, queries: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from queries (batch, queries, dim) to a context (batch, tokens, dim) with mask, bool (batch, tokens).

        Returns the outputs, (batch, queries, dim), and the attention of the first query to each token, float (batch,
        tokens), the mean over heads, without gradient. Every sample needs an unmasked token.
        """
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, queries), (self.key, context), (self.value, context))
        )
        attn_mask = mask[:, None, None]
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p=self.dropout if self.training else 0.0
        )
        with torch.no_grad():
            scores = (query[:, :, :1] @ key.transpose(2, 3)).float() / query.shape[3] ** 0.5
            attention = scores.masked_fill(~attn_mask, float("-inf")).softmax(dim=3).mean(dim=1)[:, 0]
        return self.output(attended.transpose(1, 2).flatten(2)), attention


class AttentionLayer(nn.Module):
    """Pre-norm transformer layer: attention and a feed-forward block, both residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.mlp = ResidualBlock(dim, 4 * dim, dropout)

    def forward(
        self, tokens: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the layer; arguments and results as of `Attention`, with `context=tokens` for self-attention."""
        attended, attention = self.attention(self.norm(tokens), self.norm(context), mask)
        return self.mlp(tokens + self.dropout(attended)), attention


def attention_per_input(token_attention: torch.Tensor, inputs: dict[str, Tokens]) -> torch.Tensor:
    """Sum attention to the concatenated tokens of all inputs, (batch, tokens), per input: (batch, inputs).

    Rows are normalized to sum to 1, or 0 for samples without any input.
    """
    sizes = [mask.shape[1] for _, mask in inputs.values()]
    sums = torch.stack([part.sum(dim=1) for part in token_attention.split(sizes, dim=1)], dim=1)
    return sums / sums.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)
