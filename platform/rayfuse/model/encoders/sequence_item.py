"""Built-in encoders of item sequences with timestamps."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.embedding_item_sequence import item_embedding
from rayfuse.model.encoders.networks import encode_positions
from rayfuse.model.encoders.sequence_base import SequenceEncoder
from rayfuse.model.tokens import Tokens
from rayfuse.spec.inputs import ItemSequenceInput

_MAX_AGE = 25.0
"""Upper bound of ages: log(1 + seconds) of a lifetime is below."""


class SequenceItemEncoder(SequenceEncoder):
    """Encoder of items: int64 (rows, steps); ages: float (rows, steps), log(1 + seconds); item_mask: int64 (rows, steps).

    Each step is the sum of the item's embedding and a learned projection of its encoded age, instead of its position.
    """

    has_time_encoding = True

    def __init__(self, options: Any, source: ItemSequenceInput) -> None:
        super().__init__(options, source)
        self.embedding = item_embedding(source, options.hidden_size)
        self.age_projection = nn.Linear(options.hidden_size // 2 * 2, options.hidden_size)

    def embed(  # type: ignore[override]
        self, items: torch.Tensor, ages: torch.Tensor, item_mask: torch.Tensor
    ) -> Tokens:
        # Sinusoids for ages from 0 to 25 instead of positions: with 1000 the shortest wavelength is 0.16.
        encoded = encode_positions(ages * (1000 / _MAX_AGE), self.age_projection.in_features, max_period=1000)
        steps = self.embedding(items) + self.age_projection(encoded)
        mask = item_mask.bool()
        return steps * mask.unsqueeze(2), mask
