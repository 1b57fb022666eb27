"""What a worker computes on: known GPUs, or the CPU of this machine."""

import time
from dataclasses import dataclass

from rayfuse.errors import SpecError
from rayfuse.spec.problems import nearest
from rayfuse.train.flops import peak_of

GIB = 1 << 30
SHARE_OF_PEAK = 0.4
"""Of a card's peak that training is taken to reach, in large models; small ones reach far less."""
SHARE_OF_PRODUCT = 0.6
"""Of the rate of a large matrix product that training is taken to reach on a CPU."""
CALL_SECONDS = 6e-6
"""What it takes to tell a GPU of an operation, which bounds small models."""
GPU_RESERVE = 1 * GIB
"""Of a GPU's memory: for CUDA itself, its libraries, and gaps between tensors."""

_CALIBRATED = 1024
_CALIBRATION_SECONDS = 0.5


@dataclass(frozen=True)
class Card:
    """A GPU: bytes of memory, and peak FLOP/s of dense matrix products."""

    name: str
    memory: int
    single: float
    """In float32, without TF32, which torch does not use unless told to."""
    bf16: bool = True
    """Whether it computes in bf16."""

    @property
    def half(self) -> float:
        """In 16 bits."""
        peak = peak_of(self.name)
        assert peak is not None, f"{self.name} has no peak in rayfuse.train.flops"
        return peak


CARDS = {
    card.name: card
    for card in (
        Card("B200", 178 * GIB, 75e12),
        Card("H200", 140 * GIB, 67e12),
        Card("H100", 79 * GIB, 67e12),
        Card("A100-80GB", 79 * GIB, 19.5e12),
        Card("A100", 39 * GIB, 19.5e12),
        Card("L40S", 44 * GIB, 91.6e12),
        Card("L4", 22 * GIB, 30.3e12),
        Card("A10", 22 * GIB, 31.2e12),
        Card("RTX 4090", 23 * GIB, 82.6e12),
        Card("RTX 3090", 23 * GIB, 35.6e12),
        Card("V100", 31 * GIB, 15.7e12, bf16=False),
        Card("T4", 14 * GIB, 8.1e12, bf16=False),
    )
}
"""By name; memory as the driver reports it free, rounded down, peaks from the makers' data sheets."""


def card(name: str) -> Card:
    """A known card by its name in any case, with or without spaces. Raises SpecError where it is not known."""
    known = {each.lower().replace(" ", ""): each for each in CARDS}
    plain = name.lower().replace(" ", "")
    if plain not in known:
        near = nearest(plain, list(known))
        raise SpecError(
            f"--device {name}: not a known card; {near}; for another, give --gpu-memory, and no --device"
        )
    return CARDS[known[plain]]


def this_cpu(threads: int) -> float:
    """FLOP/s of a float32 matrix product on so many threads of this machine, now."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = right = torch.ones(_CALIBRATED, _CALIBRATED)
        left @ right
        done, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _CALIBRATION_SECONDS:
            left @ right
            done += 1
    finally:
        torch.set_num_threads(before)
    return 2 * _CALIBRATED**3 * done / seconds
