"""Alignments: projections of encoded inputs to a common width."""

from rayfuse.model.alignment.base import Alignment
from rayfuse.spec.align import ALIGNMENTS, AlignConfig


def build_alignment(options: AlignConfig, width: int) -> Alignment:
    """Build the alignment of an input whose encoder outputs tokens `width` wide.

    Raises SpecError if a custom class cannot be loaded, or if the width does not suit the alignment.
    """
    alignment: Alignment = ALIGNMENTS.build(options, width, options.dim)
    if options.standardize:
        alignment.standardize(width)
    return alignment


__all__ = ["Alignment", "build_alignment"]
