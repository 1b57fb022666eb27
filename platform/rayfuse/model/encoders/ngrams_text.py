"""Text encoder: TF-IDF-weighted sum of n-gram embeddings."""

import torch
from torch import nn

from rayfuse.modalities.ngrams import PADDING
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import NGramsEncoderConfig
from rayfuse.spec.inputs import TextInput


class NGramsTextEncoder(Encoder):
    """Encoder of input_ids: int64 (rows, n-grams), 0 for padding; weights: float (rows, n-grams), 0 for padding.

    Returns (rows, 1, `hidden_size`), the weighted sum of the embeddings (fastText; Joulin et al., 2017).
    """

    def __init__(self, options: NGramsEncoderConfig, source: TextInput) -> None:
        super().__init__(options, source)
        assert options.vocabulary is not None, "fit the job on training rows first"
        self.width = options.hidden_size
        self.embedding = nn.Embedding(len(options.vocabulary) + 1, self.width, padding_idx=PADDING)
        with torch.no_grad():  # as fastText: small, so that few steps of Adam outweigh it
            self.embedding.weight[PADDING + 1 :].uniform_(-1 / self.width, 1 / self.width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, input_ids: torch.Tensor, weights: torch.Tensor) -> Tokens:  # type: ignore[override]
        embedded = self.embedding(input_ids)
        vectors = torch.matmul(weights.to(embedded.dtype).unsqueeze(1), embedded).squeeze(1)
        return as_single_token(self.dropout(vectors))
