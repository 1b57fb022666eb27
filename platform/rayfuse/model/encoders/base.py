"""Base class of encoders, and parts that several encoders share."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from rayfuse.data.cached_features import TOKENS, TOKENS_MASK
from rayfuse.model.tokens import Tokens


class Encoder(nn.Module, ABC):
    """Base class of encoders of one input, called with the features that the input's modality defines."""

    width: int
    """Width of the tokens that `forward` returns."""

    def __init__(self, options: Any, source: Any) -> None:
        """Build the encoder from its block of the spec (`options`) and that of its input (`source`)."""
        super().__init__()

    def check_input(self, source: Any) -> None:
        """Raise SpecError if values of another input, with these options, cannot be encoded."""

    @abstractmethod
    def forward(self, **features: torch.Tensor) -> Tokens:
        """Encode features, (rows, …) each, to tokens, float (rows, tokens, width), and their mask."""

    def with_cached_outputs(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return features with the outputs of what is frozen instead of what it reads, as the feature cache has them."""
        tokens, mask = self(**features)
        return {TOKENS: tokens, TOKENS_MASK: mask}


class FrozenEncoder(Encoder):
    """Wrapper that freezes an encoder and always runs it in evaluation mode."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(None, None)
        self.encoder = encoder.requires_grad_(False)
        self.width = encoder.width

    def forward(self, **features: torch.Tensor) -> Tokens:
        differentiates = any(tensor.requires_grad for tensor in features.values())  # for explanations
        with nullcontext() if differentiates else torch.no_grad():
            return self.encoder(**features)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Set the mode of the wrapper; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


def conv_stack(channels: int, width: int, dropout: float, first_stride: int = 1) -> nn.Sequential:
    """Build three convolutions and a linear layer: (rows, channels, height, width) → (rows, 4 × width).

    Group norm instead of batch norm, with which an encoding would depend on the batch and the worker.
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
