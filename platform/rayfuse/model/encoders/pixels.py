"""Frames of a video as the image processor of a pretrained encoder would have prepared them."""

from typing import Any

import torch
from torch import nn

from rayfuse.modalities.pretrained import image_processor


class PretrainedPixels(nn.Module):
    """float (rows, 3, size, size) in [-1, 1] → resized, cropped and scaled as the encoder's own settings say."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, model: str) -> None:
        super().__init__()
        processor = image_processor(model)
        self.size = _side(processor.size) if getattr(processor, "do_resize", True) else None
        cropped = getattr(processor, "do_center_crop", False)
        self.crop = _side(processor.crop_size) if cropped else None
        scaled = getattr(processor, "do_normalize", True)
        mean, deviation = (processor.image_mean, processor.image_std) if scaled else ([0.0] * 3, [1.0] * 3)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.size and self.size != pixels.shape[-1]:
            pixels = nn.functional.interpolate(
                pixels, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        if self.crop and self.crop < pixels.shape[-1]:
            start = (pixels.shape[-1] - self.crop) // 2
            pixels = pixels[..., start : start + self.crop, start : start + self.crop]
        return (pixels / 2 + 0.5 - self.mean) / self.deviation


def _side(size: Any) -> int | None:
    """The side of square pictures; processors say it in several ways."""
    for key in ("shortest_edge", "height"):
        side = getattr(size, key, None) or (size.get(key) if hasattr(size, "get") else None)
        if side:
            return int(side)
    return None
