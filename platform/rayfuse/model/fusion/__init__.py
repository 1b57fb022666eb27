"""How the aligned inputs of a sample become one vector."""

from collections.abc import Sequence

from rayfuse.model.custom import custom_options, load_class
from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.concat import ConcatFusion
from rayfuse.model.fusion.transformer import TransformerFusion
from rayfuse.spec.fusion import CustomFusion, Fusion

FUSIONS: dict[str, type[FusionModule]] = {
    "concat": ConcatFusion,
    "transformer": TransformerFusion,
}


def build_fusion(options: Fusion, dim: int, inputs: Sequence[str]) -> FusionModule:
    """The fusion of a job over `inputs`, each `dim` wide."""
    if isinstance(options, CustomFusion):
        found = load_class(options.type, FusionModule)
        return found(custom_options(options, found), dim, inputs)
    return FUSIONS[options.type](options, dim, inputs)


__all__ = ["FUSIONS", "FusionModule", "Joined", "build_fusion"]
