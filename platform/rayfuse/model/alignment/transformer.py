"""Learned queries that read an input's tokens."""

import torch
from torch import nn

from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import TransformerAlign


class TransformerAlignment(Alignment):
    """Learned queries attend to one another and to the input's tokens, pre-norm (Q-Former, Li et al., 2023).

    (values, tokens, width) → (values, queries, dim). All of a value's queries count, or none where none of its
    tokens does.
    """

    def __init__(self, options: TransformerAlign, width: int) -> None:
        super().__init__(options, width)
        self.queries = nn.Parameter(torch.randn(options.queries, options.dim) * 0.02)
        self.linear = nn.Linear(width, options.dim)
        self.norm = nn.LayerNorm(options.dim)
        layer = nn.TransformerDecoderLayer(
            options.dim, options.heads, 4 * options.dim, options.dropout,
            activation="gelu", batch_first=True, norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerDecoder(layer, options.layers, nn.LayerNorm(options.dim))

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        some = mask.any(dim=1, keepdim=True)
        queries = self.queries.expand(len(tokens), -1, -1)
        read = self.layers(
            queries,
            self.norm(self.linear(tokens)),
            memory_key_padding_mask=~(mask | ~some),  # attention to nothing at all is no number
        )
        return read, some.expand(-1, queries.shape[1])
