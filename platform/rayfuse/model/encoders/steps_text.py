"""Built-in encoders of UTF-8 bytes, one token per byte, for texts that need no pretrained model."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.steps import StepsEncoder
from rayfuse.model.tokens import Tokens

_SYMBOLS = 257


class StepsTextEncoder(StepsEncoder):
    """input_ids: int64 (rows, bytes), 0 for padding; attention_mask: int64 (rows, bytes)."""

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.embedding = nn.Embedding(_SYMBOLS, options.width, padding_idx=0)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        return self.embedding(input_ids), attention_mask.bool()
