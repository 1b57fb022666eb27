"""Manifold mixup: training on mixtures of two rows' fused vectors and of their losses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rayfuse.model.tokens import Fused

_PARTNER, _SHARE = "mixup/partner", "mixup/share"


@dataclass(frozen=True)
class Mixing:
    """Which rows are mixed (Verma et al., 2019).

    partner: int64 (batch,), the other row of each; share: float32 (batch,), how much of itself each row keeps.
    """

    partner: torch.Tensor
    share: torch.Tensor

    @classmethod
    def draw(cls, alpha: float, rows: int, device: torch.device) -> "Mixing":
        """Random pairs, with shares from Beta(alpha, alpha)."""
        share = torch.distributions.Beta(alpha, alpha).sample((rows,))
        return cls(torch.randperm(rows).to(device), share.to(device))

    @classmethod
    def of(cls, outputs: dict[str, torch.Tensor]) -> "Mixing | None":
        """The mixing that a model's outputs tell of, or None."""
        return cls(outputs[_PARTNER], outputs[_SHARE]) if _PARTNER in outputs else None

    def told(self) -> dict[str, torch.Tensor]:
        """What stands among a model's outputs for `of`."""
        return {_PARTNER: self.partner, _SHARE: self.share}

    def mix(self, fused: Fused) -> Fused:
        """The same with mixed vectors."""
        vector = fused["vector"]
        share = self.share.to(vector.dtype).unsqueeze(1)
        return {**fused, "vector": share * vector + (1 - share) * vector[self.partner]}

    def loss(
        self,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        outputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each mixed row, float32 (batch,): to its own target and to its partner's."""
        return self.share * loss(outputs, targets) + (1 - self.share) * loss(outputs, targets[self.partner])
