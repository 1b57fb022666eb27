"""What every encoder offers."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from rayfuse.model.tokens import Tokens


class Encoder(nn.Module, ABC):
    """Encodes the features of one input; called with the names that its modality gives them."""

    width: int
    """Width of the vectors that `forward` returns."""

    def __init__(self, options: Any, source: Any) -> None:
        """`options`: the encoder's own block of the spec; `source`: the input's."""
        super().__init__()

    @abstractmethod
    def forward(self, **features: torch.Tensor) -> Tokens:
        """Tokens of each row's input."""


class FrozenEncoder(Encoder):
    """Another encoder of which nothing is trained; it always runs as in evaluation."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(None, None)
        self.encoder = encoder.requires_grad_(False)
        self.width = encoder.width

    def forward(self, **features: torch.Tensor) -> Tokens:
        explains = any(tensor.requires_grad for tensor in features.values())  # asks which pixels counted
        with nullcontext() if explains else torch.no_grad():
            return self.encoder(**features)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        super().train(mode)
        self.encoder.eval()
        return self


def conv_stack(channels: int, width: int, dropout: float, first_stride: int = 1) -> nn.Sequential:
    """Three convolutions over a picture-like (rows, channels, height, width), then one vector.

    Group norm and not batch norm: a row's encoding must not depend on its neighbours or on the worker.
    """
    sizes = [channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for before, after, stride in zip(sizes, sizes[1:], (first_stride, 1, 1), strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(4, after),
            nn.GELU(),
        ]
        layers += [nn.MaxPool2d(2, ceil_mode=True)]
    layers += [
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64 * width, 4 * width),
        nn.GELU(),
    ]
    return nn.Sequential(*layers)
