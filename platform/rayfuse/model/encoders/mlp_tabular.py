"""Multilayer perceptron over tabular columns."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import MLPEncoderConfig as Options
from rayfuse.spec.inputs import TabularInput

_NUM_SPECIAL_TOKENS = 2


class MLPTabularEncoder(Encoder):
    """Encoder of numbers, missing: float (rows, numeric columns); categories: int64 (rows, category columns).

    Returns (rows, 1, `hidden_size`). The embedding of unknown categories is initialized to zeros.
    """

    def __init__(self, options: Options, source: TabularInput) -> None:
        super().__init__(options, source)
        num_numeric, category_sizes = _column_sizes(source)
        self.width = options.hidden_size
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + _NUM_SPECIAL_TOKENS, options.embedding) for size in category_sizes
        )
        with torch.no_grad():
            for embedding in self.embeddings:
                embedding.weight[0].zero_()  # type: ignore[index]
        self.input_layer = nn.Linear(
            2 * num_numeric + options.embedding * len(category_sizes), options.hidden_size
        )
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(options.hidden_size), nn.Linear(options.hidden_size, options.hidden_size), nn.GELU(),
                nn.Dropout(options.dropout),
            )
            for _ in range(options.layers - 1)
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self, numbers: torch.Tensor, missing: torch.Tensor, categories: torch.Tensor
    ) -> Tokens:
        embedded = [embedding(categories[:, column]) for column, embedding in enumerate(self.embeddings)]
        vectors = nn.functional.gelu(self.input_layer(torch.cat([numbers, missing, *embedded], dim=1)))
        for layer in self.layers:
            vectors = vectors + layer(vectors)
        return as_single_token(vectors)


def _column_sizes(source: TabularInput) -> tuple[int, list[int]]:
    """Return the number of numeric columns and the vocabulary size of each category column."""
    return len(source.numeric_columns), [
        len(vocabulary) for vocabulary in source.category_vocabularies.values()
    ]
