"""Image preprocessing of video frames for pretrained encoders."""

from typing import Any

import torch
from torch import nn

from rayfuse.modalities.pretrained import load_image_processor


class FramePreprocessor(nn.Module):
    """Resizing, cropping and normalization of frames with the settings of a pretrained encoder's image processor.

    float (frames, 3, size, size) in [-1, 1] → float (frames, 3, size of the encoder, size of the encoder).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: str) -> None:
        super().__init__()
        processor = load_image_processor(model)
        self.size = _edge_size(processor.size) if getattr(processor, "do_resize", True) else None
        cropped = getattr(processor, "do_center_crop", False)
        self.crop_size = _edge_size(processor.crop_size) if cropped else None
        normalized = getattr(processor, "do_normalize", True)
        mean, std = (processor.image_mean, processor.image_std) if normalized else ([0.0] * 3, [1.0] * 3)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.size and self.size != pixels.shape[-1]:
            pixels = nn.functional.interpolate(
                pixels, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        if self.crop_size and self.crop_size < pixels.shape[-1]:
            start = (pixels.shape[-1] - self.crop_size) // 2
            pixels = pixels[..., start : start + self.crop_size, start : start + self.crop_size]
        return (pixels / 2 + 0.5 - self.mean) / self.std


def _edge_size(size: Any) -> int | None:
    """Return the edge length of square images, which processors store in several ways."""
    for key in ("shortest_edge", "height"):
        side = getattr(size, key, None) or (size.get(key) if hasattr(size, "get") else None)
        if side:
            return int(side)
    return None
