"""A history of items as the mean of their embeddings, in which older items count less."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.pooling import weighted_mean
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import EmbeddingEncoder as Options

_SPECIAL = 2
_FIRST_DECAY = 0.1


class EmbeddingSequenceEncoder(Encoder):
    """items: int64 (rows, steps); ages: float (rows, steps), log(1 + seconds); item_mask: int64 (rows, steps).

    An item weighs exp(-λ age) = (1 + seconds)^-λ; λ is learned and not negative.
    """

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        self.width = options.width
        self.pooled = options.pool == "mean"
        self.embedding = item_embedding(source, options.width)
        self.dropout = nn.Dropout(options.dropout)
        self.decay = nn.Parameter(torch.tensor(_FIRST_DECAY).expm1().log().reshape(1))

    def forward(  # type: ignore[override]
        self, items: torch.Tensor, ages: torch.Tensor, item_mask: torch.Tensor
    ) -> Tokens:
        mask = item_mask.bool()
        weights = torch.exp(-nn.functional.softplus(self.decay) * ages) * mask
        tokens = self.dropout(self.embedding(items))
        if not self.pooled:
            return tokens * weights.unsqueeze(2), mask
        return weighted_mean(tokens, weights).unsqueeze(1), mask.any(dim=1, keepdim=True)


def item_embedding(source: Any, width: int) -> nn.Embedding:
    """A vector per item: 0 is padding, 1 an unknown item, whose vector begins as zero."""
    embedding = nn.Embedding(_vocabulary(source) + _SPECIAL, width, padding_idx=0)
    with torch.no_grad():
        embedding.weight[1].zero_()
    return embedding


def _vocabulary(source: Any) -> int:
    return len(source.vocabulary)
