"""How the aligned inputs of a sample become one vector, or one answer."""

from collections.abc import Sequence

from rayfuse.model.custom import custom_options, load_class
from rayfuse.model.fusion.attention import AttentionFusion
from rayfuse.model.fusion.average import AverageFusion
from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.bottleneck import BottleneckFusion
from rayfuse.model.fusion.concat import ConcatFusion
from rayfuse.model.fusion.concat_conv import ConcatConvFusion
from rayfuse.model.fusion.cross_attention import CrossAttentionFusion
from rayfuse.model.fusion.film import FilmFusion
from rayfuse.model.fusion.gated import GatedFusion
from rayfuse.model.fusion.hierarchical import HierarchicalFusion
from rayfuse.model.fusion.learned import LearnedFusion
from rayfuse.model.fusion.low_rank import LowRankFusion
from rayfuse.model.fusion.max_pool import MaxPoolFusion
from rayfuse.model.fusion.mlp import MlpFusion
from rayfuse.model.fusion.stacking import StackingFusion
from rayfuse.model.fusion.sum import SumFusion
from rayfuse.model.fusion.transformer import TransformerFusion
from rayfuse.model.fusion.vote import VoteFusion
from rayfuse.model.fusion.weighted import WeightedFusion
from rayfuse.spec.fusion import CustomFusion, Fusion

FUSIONS: dict[str, type[FusionModule]] = {
    "concat": ConcatFusion,
    "concat_conv": ConcatConvFusion,
    "sum": SumFusion,
    "weighted": WeightedFusion,
    "max_pool": MaxPoolFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "mlp": MlpFusion,
    "cross_attention": CrossAttentionFusion,
    "transformer": TransformerFusion,
    "bottleneck": BottleneckFusion,
    "low_rank": LowRankFusion,
    "film": FilmFusion,
    "hierarchical": HierarchicalFusion,
    "vote": VoteFusion,
    "average": AverageFusion,
    "learned": LearnedFusion,
    "stacking": StackingFusion,
}


def build_fusion(options: Fusion, dim: int, inputs: Sequence[str]) -> FusionModule:
    """The fusion of a job over `inputs`, each `dim` wide."""
    if isinstance(options, CustomFusion):
        found = load_class(options.type, FusionModule)
        return found(custom_options(options, found), dim, inputs)
    return FUSIONS[options.type](options, dim, inputs)


__all__ = ["FUSIONS", "FusionModule", "Joined", "build_fusion"]
