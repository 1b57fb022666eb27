"""Built-in encoders of a history of items with their times."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.embedding_sequence import item_embedding
from rayfuse.model.encoders.positions import encode_positions
from rayfuse.model.encoders.steps import StepsEncoder
from rayfuse.model.tokens import Tokens

_OLDEST = 25.0
"""Above log(1 + a lifetime in seconds)."""


class StepsSequenceEncoder(StepsEncoder):
    """items: int64 (rows, steps); ages: float (rows, steps), log(1 + seconds); item_mask: int64 (rows, steps).

    Each step is the item's embedding and a learned map of its encoded age, in place of its number.
    """

    knows_time = True

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.embedding = item_embedding(source, options.width)
        self.age = nn.Linear(options.width // 2 * 2, options.width)

    def read(  # type: ignore[override]
        self, items: torch.Tensor, ages: torch.Tensor, item_mask: torch.Tensor
    ) -> Tokens:
        # As in Vaswani et al., but for ages from 0 to 25: 1000 makes the shortest wavelength 0.16 of them.
        encoded = encode_positions(ages * (1000 / _OLDEST), self.age.in_features, longest=1000)
        steps = self.embedding(items) + self.age(encoded)
        mask = item_mask.bool()
        return steps * mask.unsqueeze(2), mask
