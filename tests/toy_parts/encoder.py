"""An encoder of DNA: the frequencies of short motifs."""

import torch
from pydantic import Field
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, as_single_token, mean_pool
from rayfuse.spec.base import SpecModel
from rayfuse.spec.inputs import CustomInput


class MotifEncoder(Encoder):
    """A convolution over the bases, averaged over the sequence."""

    class Options(SpecModel):
        motifs: int = Field(8, ge=1)
        """Motifs to learn, the width of the token."""
        length: int = Field(3, ge=1)
        """Bases of a motif; an odd number."""

    def __init__(self, options: Options, source: CustomInput) -> None:
        super().__init__(options, source)
        self.width = options.motifs
        alphabet = source.validate_options().alphabet
        self.conv = nn.Conv1d(len(alphabet), options.motifs, options.length, padding=options.length // 2)

    def forward(self, one_hot: torch.Tensor, base_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        motifs = self.conv(one_hot.transpose(1, 2)).transpose(1, 2).tanh()
        return as_single_token(mean_pool(motifs, base_mask.bool()))
