"""Fusion of jobs whose tasks read the inputs' tokens themselves."""

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import mean_pool_present, uniform_weights
from rayfuse.model.tokens import Tokens


class SoftTokensFusion(FusionModule):
    """Mean of the inputs that are present; zeros for a sample without any."""

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        vectors, present = mean_pool_present(inputs)
        return {"vector": (vectors * uniform_weights(present).unsqueeze(2)).sum(dim=1)}
