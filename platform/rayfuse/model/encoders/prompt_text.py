"""Stand-in for the encoder of a text that a generation task puts into its prompt."""

from typing import Any

import torch

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, as_single_token


class PromptTextEncoder(Encoder):
    """Encode every text as one token, 1: other tasks see that the text is present, and nothing of it."""

    width = 1

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)

    def forward(self, utf8: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(torch.ones(len(utf8), self.width, device=utf8.device))
