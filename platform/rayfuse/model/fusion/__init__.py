"""Fusions: how the aligned inputs of a sample become one vector, or one prediction."""

from collections.abc import Sequence

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.spec.fusion import FUSIONS, FusionConfig


def build_fusion(options: FusionConfig, dim: int, inputs: Sequence[str]) -> FusionModule:
    """Build a fusion of `inputs`, each `dim` wide. Raises SpecError if a custom class cannot be loaded."""
    fusion: FusionModule = FUSIONS.build(options, dim, inputs)
    return fusion


__all__ = ["FusionModule", "FusionOutput", "build_fusion"]
