"""Base class of the built-in encoders of sequences: embed steps, run a network over them, pool."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import Recurrent, TemporalConv, Transformer, encode_positions
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.tokens import Tokens

NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "conv": TemporalConv,
    "gru": Recurrent,
    "lstm": Recurrent,
    "transformer": lambda options: Transformer(
        options.hidden_size, options.layers, options.heads, options.dropout
    ),
}
"""Constructors of networks by the encoder's `type`."""


class SequenceEncoder(Encoder):
    """Encoder with the network that the spec's `type` names; subclasses embed the steps.

    Returns float (rows, 1, width), or (rows, steps, width) with `pool: none`.
    """

    has_time_encoding = False
    """True if `embed` encodes positions or times; if not, a Transformer gets sinusoidal positions."""

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.network = NETWORKS[options.type](options)
        self.width = int(self.network.width)  # type: ignore[arg-type]
        self.pool = Pooling(options.pool, self.width)
        self.add_positions = options.type == "transformer" and not self.has_time_encoding

    @abstractmethod
    def embed(self, **features: torch.Tensor) -> Tokens:
        """Embed the features as steps, float (rows, steps, `options.hidden_size`), and their mask, bool (rows, steps)."""

    def forward(self, **features: torch.Tensor) -> Tokens:
        steps, mask = self.embed(**features)
        if self.add_positions:
            positions = torch.arange(steps.shape[1], device=steps.device)
            steps = steps + encode_positions(positions, steps.shape[2]).to(steps.dtype)
        return self.pool(self.network(steps, mask), mask)
