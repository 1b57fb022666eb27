"""An encoder of pictures on every frame of a video, and then one vector or token per frame."""

from typing import Any

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.networks import Transformer
from rayfuse.model.encoders.pixels import PretrainedPixels
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.encoders.positions import encode_positions
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import FramesEncoder as Options
from rayfuse.spec.encoders import HuggingFaceEncoder

_TIMES_PER_SECOND = 10.0
"""Frames closer together than about a tenth of a second have nearly the same encoded time."""


class FramesVideoEncoder(Encoder):
    """frames: float (rows, T, 3, height, width) in [-1, 1]; frame_mask: int64 (rows, T); frame_times: float (rows, T), seconds.

    The encoder of each frame gets them as `pixel_values`; its tokens, if several, are averaged but with `pool: none`.
    """

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        from rayfuse.model.encoders import build_block  # which knows this class

        self.encoder = build_block("image", options.encoder, source)
        pretrained = isinstance(options.encoder, HuggingFaceEncoder)
        self.prepare = PretrainedPixels(options.encoder.model) if pretrained else nn.Identity()  # type: ignore[union-attr]
        self.width = self.encoder.width
        self.pooled = options.pool != "none"
        self.network: Transformer | None = None
        if options.pool == "transformer":
            _check_heads(options.heads, self.width)
            self.network = Transformer(self.width, options.layers, options.heads, options.dropout)
        self.pool = Pooling("mean", self.width)

    def forward(  # type: ignore[override]
        self, frames: torch.Tensor, frame_mask: torch.Tensor, frame_times: torch.Tensor
    ) -> Tokens:
        rows, count = frame_mask.shape
        tokens, inner = self.encoder(pixel_values=self.prepare(frames.flatten(0, 1)))
        times = encode_positions(frame_times * _TIMES_PER_SECOND, self.width).to(tokens.dtype)
        if not self.pooled:
            tokens = tokens.unflatten(0, (rows, count)) + times.unsqueeze(2)
            mask = inner.unflatten(0, (rows, count)) & frame_mask.bool().unsqueeze(2)
            return tokens.flatten(1, 2), mask.flatten(1, 2)
        vectors, _ = self.pool(tokens, inner)
        steps, mask = vectors.reshape(rows, count, self.width), frame_mask.bool()
        if self.network is not None:
            steps = self.network(steps + times, mask)
        return self.pool(steps, mask)


def _check_heads(heads: int, width: int) -> None:
    """Only the built encoder of the frames knows their width."""
    if width % heads:
        raise SpecError(f"encoder.heads: {heads} heads do not divide the frames' width {width}")
