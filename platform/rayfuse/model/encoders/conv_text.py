"""Small convolutional text encoder over UTF-8 bytes."""

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import ConvEncoderConfig
from rayfuse.spec.inputs import TextInput

_VOCAB_SIZE = 257
_KERNEL_SIZE = 5


class ConvTextEncoder(Encoder):
    """Encoder of input_ids: int64 (rows, bytes), 0 for padding → (rows, 1, 4 × `hidden_size`), the maximum over bytes."""

    def __init__(self, options: ConvEncoderConfig, source: TextInput) -> None:
        super().__init__(options, source)
        self.width = 4 * options.hidden_size
        self.embedding = nn.Embedding(_VOCAB_SIZE, self.width, padding_idx=0)
        self.conv1 = nn.Conv1d(self.width, self.width, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2)
        self.conv2 = nn.Conv1d(self.width, self.width, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        inside = attention_mask.unsqueeze(1).bool()
        x = self.embedding(input_ids).transpose(1, 2)
        x = nn.functional.gelu(self.conv1(x)) * inside
        x = nn.functional.gelu(self.conv2(self.dropout(x)))
        return as_single_token(x.masked_fill(~inside, float("-inf")).amax(dim=2))
