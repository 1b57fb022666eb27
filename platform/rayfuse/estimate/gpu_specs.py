"""Memory and speed of known GPUs, and of this machine's CPU."""

import time
from dataclasses import dataclass

from rayfuse.errors import SpecError
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.training.flops import peak_flops

GIB = 1 << 30
"""Bytes of a GiB."""
ASSUMED_MFU = 0.4
"""Assumed model FLOPs utilization on a GPU, for large models; small ones reach far less."""
CPU_MATMUL_EFFICIENCY = 0.6
"""Assumed training speed on a CPU, as a fraction of that of a large matrix product."""
KERNEL_LAUNCH_SECONDS = 6e-6
"""Seconds per kernel launch, which limit small models on a GPU."""
GPU_RESERVED_BYTES = 1 * GIB
"""Memory of a GPU that CUDA, its libraries and fragmentation take."""

_CALIBRATION_SIZE = 1024
_CALIBRATION_SECONDS = 0.5


@dataclass(frozen=True)
class GpuSpec:
    """Memory and peak speed of a GPU."""

    name: str
    """Name of the GPU."""
    memory_bytes: int
    """Bytes of memory."""
    peak_flops_fp32: float
    """Peak FLOP/s of dense matrix products in float32, without TF32, which torch does not use by default."""
    supports_bf16: bool = True
    """True if it has bf16 arithmetic."""

    @property
    def peak_flops_16bit(self) -> float:
        """Peak FLOP/s of dense matrix products in 16 bits."""
        peak = peak_flops(self.name)
        assert peak is not None, f"{self.name} has no peak in rayfuse.training.flops"
        return peak


GPU_SPECS = {
    spec.name: spec
    for spec in (
        GpuSpec("B200", 178 * GIB, 75e12),
        GpuSpec("H200", 140 * GIB, 67e12),
        GpuSpec("H100", 79 * GIB, 67e12),
        GpuSpec("A100-80GB", 79 * GIB, 19.5e12),
        GpuSpec("A100", 39 * GIB, 19.5e12),
        GpuSpec("L40S", 44 * GIB, 91.6e12),
        GpuSpec("L4", 22 * GIB, 30.3e12),
        GpuSpec("A10", 22 * GIB, 31.2e12),
        GpuSpec("RTX 4090", 23 * GIB, 82.6e12),
        GpuSpec("RTX 3090", 23 * GIB, 35.6e12),
        GpuSpec("V100", 31 * GIB, 15.7e12, supports_bf16=False),
        GpuSpec("T4", 14 * GIB, 8.1e12, supports_bf16=False),
    )
}
"""Known GPUs by name: free memory as the driver reports it, rounded down; peaks from the vendors' data sheets."""


def find_gpu_spec(name: str) -> GpuSpec:
    """Return a known GPU by its name, in any case, with or without spaces. Raises SpecError for any other."""
    known = {each.lower().replace(" ", ""): each for each in GPU_SPECS}
    normalized = name.lower().replace(" ", "")
    if normalized not in known:
        near = suggest_nearest(normalized, list(known))
        raise SpecError(
            f"device {name}: not a known GPU; {near} (for any other GPU, pass its memory instead)"
        )
    return GPU_SPECS[known[normalized]]


def measure_cpu_flops(threads: int) -> float:
    """Measure the FLOP/s of a float32 matrix product with this number of threads on this machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = right = torch.ones(_CALIBRATION_SIZE, _CALIBRATION_SIZE)
        left @ right
        done, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < _CALIBRATION_SECONDS:
            left @ right
            done += 1
    finally:
        torch.set_num_threads(before)
    return 2 * _CALIBRATION_SIZE**3 * done / seconds
