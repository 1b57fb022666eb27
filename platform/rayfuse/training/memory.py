"""Peak memory of a worker."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class MemoryReport(TypedDict):
    """Peak memory of a worker, as JSON values."""

    peak_bytes: int
    """Peak of the tensors on the GPU, or of the resident memory of the process on a CPU."""
    baseline_bytes: int
    """Resident memory before the model was built: the interpreter and its libraries; 0 on a GPU."""
    on_gpu: bool
    """True if the worker trains on a GPU."""


class PeakMemory:
    """Peak memory of this process since the object was made: of its GPU, or of the host without one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.baseline_bytes = 0
        """Resident memory of the interpreter and its libraries; 0 on a GPU."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            return
        preload_libraries()
        self.baseline_bytes = resident_bytes()
        with suppress(OSError):  # containers may forbid it; the peak is then that since the process started
            _CLEAR_REFS.write_text(_RESET_PEAK)

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def peak_bytes(self) -> int:
        """Return the peak in bytes: of tensors on a GPU, of resident pages on a host."""
        return torch.cuda.max_memory_allocated(self.device) if self._on_gpu else peak_resident_bytes()

    def to_dict(self) -> MemoryReport:
        """Return the report for the summary of a run."""
        return {
            "peak_bytes": self.peak_bytes(),
            "baseline_bytes": self.baseline_bytes,
            "on_gpu": self._on_gpu,
        }


def preload_libraries() -> None:
    """Import the libraries of training and run some kernels, so that they count as baseline."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - imports torch's compiler
    import transformers  # noqa: F401

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)(torch.ones(2, 4, 16)).sum().backward()
        torch.nn.Conv2d(3, 4, 3)(torch.ones(2, 3, 8, 8)).sum().backward()


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return _read("VmRSS")


def peak_resident_bytes() -> int:
    """Return the peak of the resident memory of this process in bytes."""
    return _read("VmHWM")


def _read(field: str) -> int:
    if _STATUS.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        assert found, f"{_STATUS} has no {field}"
        return int(found[1]) * 1024
    return _read_without_procfs(field)


def _read_without_procfs(field: str) -> int:
    """Read the field on systems other than Linux."""
    import resource
    import sys

    import psutil

    if field == "VmRSS":
        return int(psutil.Process().memory_info().rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
