"""A multilayer perceptron over the columns of a table."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import MLPEncoder as Options

_SPECIAL = 2


class MLPTableEncoder(Encoder):
    """numbers, missing: float (rows, number columns); categories: int64 (rows, category columns) → one token.

    The embedding of an unknown category begins as zero, and of those that training never meets stays so.
    """

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        numbers, categories = _columns(source)
        self.width = options.width
        self.embeddings = nn.ModuleList(
            nn.Embedding(known + _SPECIAL, options.embedding) for known in categories
        )
        with torch.no_grad():
            for embedding in self.embeddings:
                embedding.weight[0].zero_()  # type: ignore[index]
        self.first = nn.Linear(2 * numbers + options.embedding * len(categories), options.width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(options.width), nn.Linear(options.width, options.width), nn.GELU(),
                nn.Dropout(options.dropout),
            )
            for _ in range(options.layers - 1)
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self, numbers: torch.Tensor, missing: torch.Tensor, categories: torch.Tensor
    ) -> Tokens:
        embedded = [embedding(categories[:, column]) for column, embedding in enumerate(self.embeddings)]
        vectors = nn.functional.gelu(self.first(torch.cat([numbers, missing, *embedded], dim=1)))
        for layer in self.layers:
            vectors = vectors + layer(vectors)
        return one_token(vectors)


def _columns(source: Any) -> tuple[int, list[int]]:
    """How many columns hold numbers, and how many known categories each other column has."""
    return len(source.numbers), [len(known) for known in source.categories.values()]
