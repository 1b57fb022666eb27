"""Networks and position encodings of the built-in encoders.

Networks over sequences map (rows, steps, width) and a mask to (rows, steps, width); masked steps must be zero, are
zero in the result, and do not affect others.
"""

import math
from contextlib import nullcontext

import torch
from torch import nn

from rayfuse.spec.encoders import GRUEncoderConfig, LSTMEncoderConfig, TimeseriesConvEncoderConfig

_KERNEL_SIZE = 5


class Recurrent(nn.Module):
    """GRU or LSTM; unmasked steps must come first in each row."""

    def __init__(self, options: GRUEncoderConfig | LSTMEncoderConfig) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[options.type]
        self.layers = kind(
            options.hidden_size,
            options.hidden_size,
            options.layers,
            batch_first=True,
            bidirectional=options.bidirectional,
            dropout=options.dropout if options.layers > 1 else 0.0,
        )
        self.width = options.hidden_size * (2 if options.bidirectional else 1)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = steps if steps.is_cuda else steps.to(next(self.parameters()).dtype)
        lengths = mask.sum(1).clamp(min=1).cpu()  # required by torch, as are lengths above 0
        packed = nn.utils.rnn.pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self._run(packed), batch_first=True, total_length=steps.shape[1]
        )
        return self.dropout(states) * mask.unsqueeze(2)

    def _run(self, packed: nn.utils.rnn.PackedSequence) -> nn.utils.rnn.PackedSequence:
        """Run the layers; on CPUs without autocast, as oneDNN has no LSTM in bf16 for those without AVX-512."""
        with nullcontext() if packed.data.is_cuda else torch.autocast("cpu", enabled=False):
            outputs: nn.utils.rnn.PackedSequence = self.layers(packed)[0]
            return outputs


class Transformer(nn.Module):
    """Pre-norm Transformer encoder; the caller adds positions."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        visible = mask | ~mask.any(dim=1, keepdim=True)  # softmax over no steps would be NaN
        return self.layers(steps, src_key_padding_mask=~visible) * mask.unsqueeze(2)


class TemporalConv(nn.Module):
    """Dilated convolutions with residual connections; the dilation doubles with each layer (TCN, Bai et al., 2018).

    Layer norm within each step instead of group norm over all steps, which padding would affect.
    """

    def __init__(self, options: TimeseriesConvEncoderConfig) -> None:
        super().__init__()
        self.width = options.hidden_size
        self.layers = nn.ModuleList(
            nn.Conv1d(self.width, self.width, _KERNEL_SIZE, padding="same", dilation=2**number)
            for number in range(options.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in self.layers)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inside = mask.unsqueeze(2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            convolved = layer((norm(steps) * inside).transpose(1, 2)).transpose(1, 2)
            steps = (steps + self.dropout(nn.functional.gelu(convolved))) * inside
        return steps


class StridedConv(nn.Module):
    """Strided convolution: (rows, steps, channels) → (rows, ⌈steps / stride⌉, width), and the mask of those steps."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.layer = nn.Conv1d(channels, width, 2 * stride + 1, stride, padding=stride)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        merged = self.layer((steps * mask.unsqueeze(2)).transpose(1, 2)).transpose(1, 2)
        mask = mask[:, :: self.stride]
        return nn.functional.gelu(merged) * mask.unsqueeze(2), mask


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut (He et al., 2016), with group norm (Wu and He, 2018).

    With batch norm, an encoding would depend on the batch and the worker.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.GroupNorm(4, out_channels),
            nn.GELU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(4, out_channels),
        )
        self.stride = stride
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        # Not a stride of the convolution: its backward pass in oneDNN 3.12 corrupts memory on CPUs without AVX-512.
        strided = maps[:, :, :: self.stride, :: self.stride]
        return nn.functional.gelu(self.layers(maps) + self.shortcut(strided))


def residual_stages(channels: int, width: int, depths: list[int]) -> nn.ModuleList:
    """Build a stem and `depths` residual blocks per stage; each later stage doubles channels and halves resolution."""
    stem = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(4, width), nn.GELU()
    )
    stages = [stem]
    for number, count in enumerate(depths):
        after = width * 2**number
        first = ResidualBlock(width if number == 0 else after // 2, after, 1 if number == 0 else 2)
        stages.append(nn.Sequential(first, *(ResidualBlock(after, after, 1) for _ in range(count - 1))))
    return nn.ModuleList(stages)


def encode_positions(positions: torch.Tensor, width: int, max_period: float = 10_000.0) -> torch.Tensor:
    """Encode positions or times, (…), as sines and cosines (Vaswani et al., 2017): float32 (…, width).

    Wavelengths range from 2π to 2π × `max_period`.
    """
    half = width // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32) / max(1, half - 1)
    angles = positions.float().unsqueeze(-1) * torch.exp(-math.log(max_period) * steps)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return nn.functional.pad(encoded, (0, width - 2 * half))


def encode_grid(height: int, width: int, size: int, device: torch.device) -> torch.Tensor:
    """Encode the rows and columns of a grid: float32 (height × width, size), half for each; `size` divisible by 4."""
    rows = encode_positions(torch.arange(height, device=device), size // 2)
    columns = encode_positions(torch.arange(width, device=device), size // 2)
    grid = [rows.unsqueeze(1).expand(-1, width, -1), columns.unsqueeze(0).expand(height, -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)
