"""How the aligned inputs of a sample become one vector."""

from collections.abc import Sequence

from rayfuse.model.fusion.base import FusionModule
from rayfuse.model.fusion.concat import ConcatFusion
from rayfuse.model.fusion.transformer import TransformerFusion
from rayfuse.spec.fusion import Fusion

FUSIONS: dict[str, type[FusionModule]] = {
    "concat": ConcatFusion,
    "transformer": TransformerFusion,
}


def build_fusion(options: Fusion, dim: int, inputs: Sequence[str]) -> FusionModule:
    """The fusion of a job over `inputs`, each `dim` wide."""
    return FUSIONS[options.type](options, dim, inputs)


__all__ = ["FUSIONS", "FusionModule", "build_fusion"]
