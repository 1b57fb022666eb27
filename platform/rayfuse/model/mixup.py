"""Manifold mixup: train on mixtures of the fused vectors of two samples and of their losses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rayfuse.model.tokens import FusedState


@dataclass(frozen=True)
class Mixing:
    """Pairs of samples to mix, and their coefficients (Verma et al., 2019)."""

    permutation: torch.Tensor
    """The partner of each sample, int64 (batch,)."""
    lam: torch.Tensor
    """The weight of each sample in its mixture, float32 (batch,); its partner has 1 - lam."""

    @classmethod
    def sample(cls, alpha: float, rows: int, device: torch.device) -> "Mixing":
        """Draw random pairs of `rows` samples with coefficients from Beta(alpha, alpha)."""
        lam = torch.distributions.Beta(alpha, alpha).sample((rows,))
        return cls(torch.randperm(rows).to(device), lam.to(device))

    def mix(self, fused: FusedState) -> FusedState:
        """Return the fused state with mixed vectors."""
        vector = fused["vector"]
        lam = self.lam.to(vector.dtype).unsqueeze(1)
        return {**fused, "vector": lam * vector + (1 - lam) * vector[self.permutation]}

    def loss(
        self,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        outputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of each mixed sample with respect to its own and its partner's target, float32 (batch,)."""
        return self.lam * loss(outputs, targets) + (1 - self.lam) * loss(outputs, targets[self.permutation])
