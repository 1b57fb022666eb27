"""What the built-in encoders of step-wise inputs share: read the steps, run a network over them, pool."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import Recurrent, TemporalConv, Transformer
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.encoders.positions import encode_positions
from rayfuse.model.tokens import Tokens

NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "conv": TemporalConv,
    "gru": Recurrent,
    "lstm": Recurrent,
    "transformer": lambda options: Transformer(options.width, options.layers, options.heads, options.dropout),
}


class StepsEncoder(Encoder):
    """An encoder whose network the spec's `type` names; children say how steps `options.width` wide are read."""

    knows_time = False
    """Whether the steps tell where they stand; else a Transformer gets their numbers."""

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.network = NETWORKS[options.type](options)
        self.width = int(self.network.width)  # type: ignore[arg-type]
        self.pool = Pooling(options.pool, self.width)
        self.numbered = options.type == "transformer" and not self.knows_time

    @abstractmethod
    def read(self, **features: torch.Tensor) -> Tokens:
        """Steps, float (rows, steps, `options.width`), and which of them count."""

    def forward(self, **features: torch.Tensor) -> Tokens:
        steps, mask = self.read(**features)
        if self.numbered:
            places = torch.arange(steps.shape[1], device=steps.device)
            steps = steps + encode_positions(places, steps.shape[2]).to(steps.dtype)
        return self.pool(self.network(steps, mask), mask)
