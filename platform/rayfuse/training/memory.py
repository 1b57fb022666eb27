"""Peak memory of a worker."""

import ctypes
import importlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import torch

from rayfuse.spec.job import Job
from rayfuse.training.deepspeed_patches import import_without_mlflow
from rayfuse.training.precision import DTYPES, choose_precision

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

_LIBC = ctypes.CDLL(None)

_KERNEL_CACHE_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Kernels that oneDNN, and PyTorch's binding of it, keep per process, by default 1024 each.

Batches whose lengths differ need other kernels, of about 100 kB each; with 64, those of the demo are compiled again and again.
"""


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

    def __init__(self, device: torch.device, libraries: Iterable[str] = ()) -> None:
        """`libraries`: those of `job_libraries`, which count as baseline."""
        self.device = device
        self.baseline_bytes = 0
        """Resident memory of the interpreter and its libraries; 0 on a GPU."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            return
        preload_libraries(libraries)
        release_free_memory()
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


def limit_kernel_caches() -> None:
    """Limit the compiled kernels that this process keeps, unless the user has; call it before the first computation."""
    for name, value in _KERNEL_CACHE_ENV.items():
        os.environ.setdefault(name, value)


def release_free_memory() -> None:
    """Return memory that this process has freed to the system, where the allocator can do that: glibc's retains it."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def job_libraries(job: Job) -> tuple[str, ...]:
    """Return the names of the large libraries that the workers of a job import, and those of other jobs do not."""
    pretrained = [options for _, options in job.pretrained_models()]
    transformers = ("transformers",) if pretrained else ()
    return (
        (*transformers, "peft")
        if any(options.adapter is not None for options in pretrained)
        else transformers
    )


def preload_libraries(libraries: Iterable[str] = ()) -> None:
    """Import the libraries of training and run some kernels in each precision, so that they count as baseline.

    `libraries`: those of `job_libraries`.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import_without_mlflow()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - imports torch's compiler

    for library in libraries:
        importlib.import_module(library)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for precision in {"fp32", choose_precision("auto", torch.device("cpu"))[0]}:
            with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "fp32"):
                layer = torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
                layer(torch.ones(2, 4, 16)).sum().backward()
                torch.nn.Conv2d(3, 4, 3)(torch.ones(2, 3, 8, 8)).sum().backward()
                torch.nn.Conv1d(3, 4, 3)(torch.ones(2, 3, 8)).sum().backward()


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
