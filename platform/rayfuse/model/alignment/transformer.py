"""Alignment by learned queries."""

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import TransformerAlignConfig


class TransformerAlignment(Alignment):
    """Learned queries with self-attention and cross-attention to the tokens, pre-norm (Q-Former, Li et al., 2023).

    (values, tokens, width) → (values, queries, dim). The queries of a value are masked if all of its tokens are.
    """

    def __init__(self, options: TransformerAlignConfig, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        self.queries = nn.Parameter(torch.randn(options.num_queries, dim) * 0.02)
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        layer = nn.TransformerDecoderLayer(
            dim, options.heads, 4 * dim, options.dropout,
            activation="gelu", batch_first=True, norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerDecoder(layer, options.layers, nn.LayerNorm(dim))

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        present = mask.any(dim=1, keepdim=True)
        queries = self.queries.expand(len(tokens), -1, -1)
        outputs = self.layers(
            queries,
            self.norm(self.linear(tokens)),
            memory_key_padding_mask=~(mask | ~present),  # softmax over no tokens would be NaN
        )
        return outputs, present.expand(-1, queries.shape[1])
