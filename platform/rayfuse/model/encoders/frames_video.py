"""Video encoder that applies an image encoder to each frame."""

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.frame_preprocessing import FramePreprocessor
from rayfuse.model.encoders.networks import Transformer, encode_positions
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import FramesEncoderConfig as Options
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import VideoInput

_POSITIONS_PER_SECOND = 10.0
"""Resolution of encoded times: frames less than about 0.1 s apart get nearly the same encoding."""


class FramesVideoEncoder(Encoder):
    """Encoder of frames: float (rows, T, 3, height, width) in [-1, 1]; frame_mask: int64 (rows, T); frame_times: float (rows, T), s.

    The image encoder gets frames as `pixel_values`. Its tokens are averaged per frame and pooled over frames to
    (rows, 1, width); with `pool: none`, all tokens are returned with encoded times, (rows, T × tokens, width).
    """

    def __init__(self, options: Options, source: VideoInput) -> None:
        super().__init__(options, source)
        from rayfuse.model.encoders import build_nested_encoder  # circular import

        self.encoder = build_nested_encoder("image", options.encoder, source)
        pretrained = isinstance(options.encoder, HuggingFaceEncoderConfig)
        self.preprocess = FramePreprocessor(options.encoder.model) if pretrained else nn.Identity()  # type: ignore[attr-defined]
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
        tokens, token_mask = self.encoder(pixel_values=self.preprocess(frames.flatten(0, 1)))
        times = encode_positions(frame_times * _POSITIONS_PER_SECOND, self.width).to(tokens.dtype)
        if not self.pooled:
            tokens = tokens.unflatten(0, (rows, count)) + times.unsqueeze(2)
            mask = token_mask.unflatten(0, (rows, count)) & frame_mask.bool().unsqueeze(2)
            return tokens.flatten(1, 2), mask.flatten(1, 2)
        vectors, _ = self.pool(tokens, token_mask)
        steps, mask = vectors.reshape(rows, count, self.width), frame_mask.bool()
        if self.network is not None:
            steps = self.network(steps + times, mask)
        return self.pool(steps, mask)


def _check_heads(heads: int, width: int) -> None:
    """Raise SpecError if the width of the image encoder, known only once it is built, is not divisible."""
    if width % heads:
        raise SpecError(
            f"encoder.heads: {heads} does not divide the image encoder's width of {width}; use a divisor"
        )
