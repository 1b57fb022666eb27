"""Nothing at all."""

import torch

from rayfuse.errors import SpecError
from rayfuse.model.alignment.base import Alignment
from rayfuse.model.tokens import Tokens
from rayfuse.spec.align import IdentityAlign


class IdentityAlignment(Alignment):
    """Leaves tokens as they are. Raises SpecError where the encoder's are not `dim` wide."""

    def __init__(self, options: IdentityAlign, width: int) -> None:
        super().__init__(options, width)
        if width != options.dim:
            raise SpecError(
                f"align: identity leaves tokens as wide as the encoder makes them, {width}, and dim is {options.dim}; "
                f"write dim: {width}, or another type"
            )

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return tokens, mask
