"""Built-in sequence encoders of text over UTF-8 bytes."""

from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.sequence_base import SequenceEncoder
from rayfuse.model.tokens import Tokens
from rayfuse.spec.inputs import TextInput

_VOCAB_SIZE = 257


class SequenceTextEncoder(SequenceEncoder):
    """Encoder of input_ids: int64 (rows, bytes), 0 for padding; attention_mask: int64 (rows, bytes)."""

    def __init__(self, options: Any, source: TextInput) -> None:
        super().__init__(options, source)
        self.embedding = nn.Embedding(_VOCAB_SIZE, options.hidden_size, padding_idx=0)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        return self.embedding(input_ids), attention_mask.bool()
