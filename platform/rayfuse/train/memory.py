"""How much memory a worker took at most."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """The most that this process held since this was made: of its GPU, else of the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.baseline = 0
        """What it held already: the interpreter and its libraries."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            return
        load_libraries()
        self.baseline = resident()
        with suppress(OSError):  # a container may forbid it; the peak is then that of the whole process
            _CLEAR.write_text(_RESET_PEAK)

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def bytes(self) -> int:
        """On a GPU of tensors, on a host of all resident pages."""
        return torch.cuda.max_memory_allocated(self.device) if self._on_gpu else peak_resident()

    def told(self) -> dict[str, Any]:
        """For the outcome of a run."""
        return {"peak_bytes": self.bytes(), "baseline_bytes": self.baseline, "on_gpu": self._on_gpu}


def load_libraries() -> None:
    """Import what training will and run some kernels, so that none of it counts as the model's later on."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - brings along torch's compiler
    import transformers  # noqa: F401

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)(torch.ones(2, 4, 16)).sum().backward()
        torch.nn.Conv2d(3, 4, 3)(torch.ones(2, 3, 8, 8)).sum().backward()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return _read("VmRSS")


def peak_resident() -> int:
    """The most bytes of this process that were in memory at once."""
    return _read("VmHWM")


def _read(field: str) -> int:
    if _STATUS.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        assert found, f"{_STATUS} has no {field}"
        return int(found[1]) * 1024
    return _without_proc(field)


def _without_proc(field: str) -> int:
    """On systems other than Linux."""
    import resource
    import sys

    import psutil

    if field == "VmRSS":
        return int(psutil.Process().memory_info().rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
