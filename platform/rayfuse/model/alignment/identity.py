"""Alignment without a projection."""

import torch

from rayfuse.errors import SpecError
from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import IdentityAlignConfig


class IdentityAlignment(Alignment):
    """Identity alignment; raises SpecError if the encoder's width differs from `dim`."""

    def __init__(self, options: IdentityAlignConfig, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        if width != dim:
            raise SpecError(
                f"align.dim: {dim} differs from the encoder's width of {width}, which identity does not change; "
                f"use dim: {width}, or another align.type"
            )

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return tokens, mask
