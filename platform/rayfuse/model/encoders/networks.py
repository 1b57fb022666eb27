"""Networks over steps that several built-in encoders share: (rows, steps, width) and a mask → the same, encoded.

Steps that do not count are zero on the way in and on the way out, and change nothing.
"""

from typing import Any

import torch
from torch import nn

_KERNEL = 5


class Recurrent(nn.Module):
    """GRU or LSTM; what counts must come first in each row."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[options.type]
        self.layers = kind(
            options.width,
            options.width,
            options.layers,
            batch_first=True,
            bidirectional=options.bidirectional,
            dropout=options.dropout if options.layers > 1 else 0.0,
        )
        self.width = options.width * (2 if options.bidirectional else 1)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(1).clamp(min=1).cpu()  # torch wants them there, and none of them zero
        packed = nn.utils.rnn.pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.layers(packed)[0], batch_first=True, total_length=steps.shape[1]
        )
        return self.dropout(states) * mask.unsqueeze(2)


class Transformer(nn.Module):
    """A pre-norm Transformer encoder without positions: who calls it adds them."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        visible = mask | ~mask.any(dim=1, keepdim=True)  # attention to nothing at all is no number
        return self.layers(steps, src_key_padding_mask=~visible) * mask.unsqueeze(2)


class TemporalConv(nn.Module):
    """Convolutions with residual connections, each twice as far apart as the last.

    Layer norm within each step, and not group norm over all of them, which padding would change.
    """

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.width = options.width
        self.layers = nn.ModuleList(
            nn.Conv1d(self.width, self.width, _KERNEL, padding="same", dilation=2**number)
            for number in range(options.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in self.layers)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inside = mask.unsqueeze(2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            seen = layer((norm(steps) * inside).transpose(1, 2)).transpose(1, 2)
            steps = (steps + self.dropout(nn.functional.gelu(seen))) * inside
        return steps


class Strided(nn.Module):
    """A first convolution that merges `stride` steps into one: (rows, steps, channels) → (rows, fewer, width)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.layer = nn.Conv1d(channels, width, 2 * stride + 1, stride, padding=stride)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        merged = self.layer((steps * mask.unsqueeze(2)).transpose(1, 2)).transpose(1, 2)
        mask = mask[:, :: self.stride]
        return nn.functional.gelu(merged) * mask.unsqueeze(2), mask


class ResidualBlock(nn.Module):
    """Two convolutions beside a short cut (He et al., 2016), with group norm (Wu and He, 2018).

    Group norm and not batch norm: a row's encoding must not depend on its neighbours or on the worker.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(4, after),
            nn.GELU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(4, after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.layers(maps) + self.shortcut(maps))


def residual_stages(channels: int, width: int, blocks: list[int]) -> nn.ModuleList:
    """Stages of residual blocks: each after the first has twice the channels at half the resolution."""
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(4, width), nn.GELU()
    )
    stages = [stem]
    for number, count in enumerate(blocks):
        after = width * 2**number
        first = ResidualBlock(width if number == 0 else after // 2, after, 1 if number == 0 else 2)
        stages.append(nn.Sequential(first, *(ResidualBlock(after, after, 1) for _ in range(count - 1))))
    return nn.ModuleList(stages)
