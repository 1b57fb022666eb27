"""A small convolutional encoder of UTF-8 bytes, for texts that need no pretrained model."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import ConvEncoder
from rayfuse.spec.inputs import TextInput

_SYMBOLS = 257
_KERNEL = 5


class ConvTextEncoder(Encoder):
    """input_ids: int64 (rows, bytes), 0 for padding → one token of 4 × `width`, the maximum over positions."""

    def __init__(self, options: ConvEncoder, source: TextInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.width
        self.embedding = nn.Embedding(_SYMBOLS, self.width, padding_idx=0)
        self.first = nn.Conv1d(self.width, self.width, _KERNEL, padding=_KERNEL // 2)
        self.second = nn.Conv1d(self.width, self.width, _KERNEL, padding=_KERNEL // 2)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        inside = attention_mask.unsqueeze(1).bool()
        x = self.embedding(input_ids).transpose(1, 2)
        x = nn.functional.gelu(self.first(x)) * inside
        x = nn.functional.gelu(self.second(self.dropout(x)))
        return one_token(x.masked_fill(~inside, float("-inf")).amax(dim=2))
