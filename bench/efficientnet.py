"""EfficientNet-Lite0, pretrained on ImageNet, as a custom encoder: the image recipes name it by import path.

Tan and Le, 2019; the Lite variants (2020) have ReLU6 and no squeeze-and-excitation. The weights come as a file of
tensors whose names are kept here.
"""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.base import SpecModel

_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, kernel size, stride of the first block, expansion and channels of each stage."""
_INNER = {4: 40, 7: 80, 10: 112, 14: 192}
"""Channels of the last blocks of the third to sixth stages."""
_INNER_WIDTH = 2 * sum(_INNER.values()) + 320


class EfficientNetLite0(Encoder):
    """Encode float (rows, 3, height, width) `pixel_values` in [-1, 1] as one token, with fixed batch norm statistics.

    The token is 1280 wide, 1168 with `inner`, times the number of `sizes`. With `grid`, there are 1 + grid² tokens for each
    size, 1280 wide: the whole image, and its cells row by row.
    """

    class Options(SpecModel):
        """Options of the spec."""

        weights: str
        """File with the weights."""
        train_blocks: int = 0
        """Number of trained blocks of the 16, counted from the last; 0 trains nothing."""
        dropout: float = 0.2
        sizes: list[int] = Field(default_factory=list)
        """Sizes in pixels to which images are resized; the outputs of all sizes are concatenated. Empty: no resizing."""
        inner: bool = False
        """Use mean and maximum of inner blocks and the mean of the last one instead of the classifier's features."""
        grid: int = 0
        """Cells per row and column of the image that are tokens of their own; 0 for one token, of the whole image."""

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        self.sizes, self.inner, self.grid = options.sizes, options.inner, options.grid
        vectors = 1 if options.grid else max(1, len(options.sizes))
        self.width = vectors * (_INNER_WIDTH if options.inner else 1280)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self.dropout = nn.Dropout(options.dropout)
        tensors = torch.load(options.weights, weights_only=True, map_location="cpu")
        self.load_state_dict(
            {name: tensor for name, tensor in tensors.items() if not name.startswith("_fc.")}
        )
        self.requires_grad_(False)
        for part in [*self._blocks[len(self._blocks) - options.train_blocks :], self._conv_head, self._bn1]:
            part.requires_grad_(options.train_blocks > 0)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        scaled = [_scaled(pixel_values, size) for size in self.sizes] or [pixel_values]
        if not self.grid:
            return as_single_token(
                self.dropout(torch.cat([self._vector(pixels) for pixels in scaled], dim=1))
            )
        maps = [self._classifier_map(self._block_maps(pixels)[-1]) for pixels in scaled]
        cells = [nn.functional.adaptive_avg_pool2d(one, side) for one in maps for side in (1, self.grid)]
        tokens = self.dropout(torch.cat([one.flatten(2) for one in cells], dim=2).transpose(1, 2))
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def _vector(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return a vector for each image, float (rows, width)."""
        maps = self._block_maps(pixels)
        if not self.inner:
            return self._classifier_map(maps[-1]).mean(dim=(2, 3))
        inner = [
            part
            for number in _INNER
            for part in (maps[number].mean(dim=(2, 3)), maps[number].amax(dim=(2, 3)))
        ]
        return torch.cat([*inner, maps[-1].mean(dim=(2, 3))], dim=1)

    def _block_maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of each block, float (rows, channels, height, width)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        maps = []
        for block in self._blocks:
            x = block(x)
            maps.append(x)
        return maps

    def _classifier_map(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map whose mean the classifier reads, float (rows, 1280, height, width)."""
        return nn.functional.relu6(self._bn1(self._conv_head(x)))

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Set the mode, with batch norm always in evaluation mode: rows must not depend on each other."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _scaled(pixels: torch.Tensor, size: int) -> torch.Tensor:
    return nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


class _MBConv(nn.Module):
    """Inverted residual block (Sandler et al., 2018)."""

    def __init__(self, before: int, after: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(before, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = nn.Conv2d(
            inner, inner, kernel_size, stride, padding=kernel_size // 2, groups=inner, bias=False
        )
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, after, 1, bias=False)
        self._bn2 = _norm(after)
        self.residual = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = nn.functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return x + inner if self.residual else inner


def _blocks() -> list[nn.Module]:
    blocks: list[nn.Module] = []
    before = 32
    for count, kernel, stride, expansion, after in _STAGES:
        for number in range(count):
            blocks.append(_MBConv(before, after, kernel, stride if number == 0 else 1, expansion))
            before = after
    return blocks


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
