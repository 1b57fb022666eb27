"""Where a token stands, as a vector: sines and cosines of many wavelengths (Vaswani et al., 2017)."""

import math

import torch


def encode_positions(positions: torch.Tensor, width: int, longest: float = 10_000.0) -> torch.Tensor:
    """Positions or times, any shape → float32 (…, width); wavelengths from 2π to 2π × `longest`."""
    half = width // 2
    steps = torch.arange(half, device=positions.device, dtype=torch.float32) / max(1, half - 1)
    angles = positions.float().unsqueeze(-1) * torch.exp(-math.log(longest) * steps)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.nn.functional.pad(encoded, (0, width - 2 * half))


def encode_grid(height: int, width: int, size: int, device: torch.device) -> torch.Tensor:
    """Rows and columns of a grid → float32 (height × width, size), half of it for each; `size` in fours."""
    rows = encode_positions(torch.arange(height, device=device), size // 2)
    columns = encode_positions(torch.arange(width, device=device), size // 2)
    grid = [rows.unsqueeze(1).expand(-1, width, -1), columns.unsqueeze(0).expand(height, -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)
