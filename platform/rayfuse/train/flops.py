"""How much of a GPU's arithmetic training uses (model FLOPs utilization, MFU; Chowdhery et al., 2022, appendix B).

The arithmetic of forward and backward passes is counted as they run, at steps 1, 2, 4, 8 and so on: what a row takes
depends on how long its batch is padded, and counting slows a step down. What is computed twice to save memory counts
twice.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rayfuse.data.batches import Batch

_PEAKS: tuple[tuple[str, float], ...] = (
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
    ("MI250X", 191e12),  # PyTorch sees each of its two halves as a device
)
"""FLOP/s of dense products of 16-bit matrices, from the makers' data sheets; more words of a name come first."""


def peak_of(name: str) -> float | None:
    """The device's peak in FLOP/s for dense 16-bit matrix products; None where it is not known."""
    words = set(re.findall(r"\w+", name))
    return next((peak for known, peak in _PEAKS if words.issuperset(known.split())), None)


def device_peak(device: torch.device) -> float | None:
    """None for a CPU: what it could do depends on its clock, its threads and what else runs."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class FlopCount:
    """FLOPs of a row of training: the mean over the steps that were counted on this worker."""

    def __init__(self) -> None:
        self._steps = 0
        self._flops = 0
        self._rows = 0

    @contextmanager
    def step(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Around one step over this worker's micro-batches."""
        self._steps += 1
        if self._steps & (self._steps - 1):
            yield
            return
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self._flops += counter.get_total_flops()
        self._rows += sum(int(batch.whole.sum()) for batch in batches)

    @property
    def per_row(self) -> float:
        return self._flops / max(1, self._rows)
