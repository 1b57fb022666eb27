"""Item sequence encoder: mean of item embeddings, weighted by age."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.pooling import weighted_mean
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import EmbeddingEncoderConfig as Options
from rayfuse.spec.inputs import ItemSequenceInput

_NUM_SPECIAL_TOKENS = 2
_INITIAL_DECAY = 0.1


class EmbeddingItemSequenceEncoder(Encoder):
    """Encoder of items: int64 (rows, steps); ages: float (rows, steps), log(1 + seconds); item_mask: int64 (rows, steps).

    The weight of an item is exp(-λ age) = (1 + seconds)^-λ, with a learned λ ≥ 0. Returns float (rows, 1, width), or
    (rows, steps, width) with `pool: none`.
    """

    def __init__(self, options: Options, source: ItemSequenceInput) -> None:
        super().__init__(options, source)
        self.width = options.hidden_size
        self.pooled = options.pool == "mean"
        self.embedding = item_embedding(source, options.hidden_size)
        self.dropout = nn.Dropout(options.dropout)
        self.decay = nn.Parameter(torch.tensor(_INITIAL_DECAY).expm1().log().reshape(1))

    def forward(  # type: ignore[override]
        self, items: torch.Tensor, ages: torch.Tensor, item_mask: torch.Tensor
    ) -> Tokens:
        mask = item_mask.bool()
        weights = torch.exp(-nn.functional.softplus(self.decay) * ages) * mask
        tokens = self.dropout(self.embedding(items))
        if not self.pooled:
            return tokens * weights.unsqueeze(2), mask
        return weighted_mean(tokens, weights).unsqueeze(1), mask.any(dim=1, keepdim=True)


def item_embedding(source: ItemSequenceInput, width: int) -> nn.Embedding:
    """Build the embedding of a sequence's items: 0 is padding, 1 an unknown item, initialized to zeros."""
    assert source.vocabulary is not None, "fit the job on training rows first"
    embedding = nn.Embedding(len(source.vocabulary) + _NUM_SPECIAL_TOKENS, width, padding_idx=0)
    with torch.no_grad():
        embedding.weight[1].zero_()
    return embedding
