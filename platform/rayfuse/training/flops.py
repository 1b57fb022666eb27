"""FLOPs of training, for the model FLOPs utilization (MFU; Chowdhery et al., 2022, appendix B).

FLOPs of forward and backward passes are counted while they run, at steps 1, 2, 4, 8 and so on, because FLOPs per row
depend on padding and counting slows a step down. Recomputed activations count twice.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rayfuse.data.collate import Batch

_PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307e12),
    ("MI250X", 191e12),  # per die: PyTorch sees each of the two as a device
)
"""Peak FLOP/s of dense 16-bit matrix products from the vendors' data sheets; more specific names come first."""


def peak_flops(name: str) -> float | None:
    """Return the peak FLOP/s of a device for dense 16-bit matrix products by its name; None if unknown."""
    words = set(re.findall(r"\w+", name))
    return next((peak for known, peak in _PEAK_FLOPS if words.issuperset(known.split())), None)


def device_peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of a GPU; None for a CPU, whose peak depends on clock, threads and load."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class FlopCount:
    """FLOPs per training row, averaged over the counted steps of this worker."""

    def __init__(self) -> None:
        self._steps = 0
        self._flops = 0
        self._rows = 0

    @contextmanager
    def count_step(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Return a context for one step over this worker's micro-batches."""
        self._steps += 1
        if self._steps & (self._steps - 1):
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self._flops += counter.get_total_flops()
        self._rows += sum(int(batch.is_full.sum()) for batch in batches)

    @property
    def per_row(self) -> float:
        """FLOPs of forward and backward pass per row."""
        return self._flops / max(1, self._rows)
