"""What rank 0 tells the driver while it trains: losses, rates, memory, and the machine's own numbers."""

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch

from rayfuse.errors import RayfuseError
from rayfuse.train.board import Record

_RECORD_SECONDS = 1.0
_SYSTEM_SECONDS = 10.0


class Telemetry:
    """Sends records and progress to the driver's board; without a board it only checks the loss."""

    def __init__(self, board: Any, device: torch.device) -> None:
        self.board, self.device = board, device
        self._rows = 0
        self._steps: list[torch.Tensor] = []
        self._parts: list[Mapping[str, torch.Tensor]] = []
        self._since = time.perf_counter()
        self._done = threading.Event()
        if board is not None:
            threading.Thread(target=self._watch_system, name="system-metrics", daemon=True).start()

    def record(self, step: int, metrics: dict[str, float], **more: int) -> None:
        """Keep metrics for the run's history."""
        self._push([{"time": time.time(), "step": step, "metrics": metrics, **more}])

    def step(
        self,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        total: int,
        rows: int,
        loss: torch.Tensor,
        parts: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Note one optimizer step; about once a second, and at the end of an epoch, it is reported.

        `parts` are what the loss is made of, by name; where there are several, they are reported too.
        Raises RayfuseError where the loss is no finite number.
        """
        self._rows += rows
        self._steps.append(loss)
        self._parts.append(parts if parts and len(parts) > 1 else {})
        seconds = time.perf_counter() - self._since
        if seconds < _RECORD_SECONDS and step < steps:
            return
        mean = float(torch.stack(self._steps).mean())
        if not math.isfinite(mean):
            raise RayfuseError(
                f"the loss is {mean} at step {total}; lower train.optimizer.lr or set train.precision: fp32"
            )
        rate = self._rows / seconds
        self.record(total, {"train/loss": mean, **self._mean_parts(), "train/rows_per_second": rate})
        left = (steps - step + steps * (epochs - epoch - 1)) * seconds / len(self._steps)
        self._show(
            {"epoch": epoch + 1, "epochs": epochs, "step": step, "steps": steps, "loss": mean, "rate": rate,
             "left": left, "memory": self._memory()}
        )  # fmt: skip
        self.resume_clock()

    def resume_clock(self) -> None:
        """Start the rate anew, after time that was not training."""
        self._rows, self._steps, self._parts, self._since = 0, [], [], time.perf_counter()

    def close(self) -> None:
        self._done.set()

    def _mean_parts(self) -> dict[str, float]:
        names = {name: None for parts in self._parts for name in parts}
        return {
            f"train/loss/{name}": float(torch.stack([p[name] for p in self._parts if name in p]).mean())
            for name in names
        }

    def _memory(self) -> int:
        """Bytes that this worker holds: of its GPU, else of the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _push(self, records: list[Record]) -> None:
        if self.board is not None:
            self.board.push.remote(records)

    def _show(self, progress: dict[str, Any]) -> None:
        if self.board is not None:
            self.board.show.remote(progress)

    def _watch_system(self) -> None:
        import psutil

        psutil.cpu_percent()
        step = 0
        while not self._done.wait(_SYSTEM_SECONDS):
            memory = psutil.virtual_memory()
            metrics = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / 1e6,
                "system/system_memory_usage_percentage": memory.percent,
                "system/disk_usage_percentage": psutil.disk_usage("/").percent,
            }
            if self.device.type == "cuda":
                metrics["system/gpu_memory_usage_megabytes"] = torch.cuda.memory_reserved(self.device) / 1e6
                with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # it needs NVIDIA's own package
                    metrics["system/gpu_utilization_percentage"] = float(torch.cuda.utilization(self.device))
            self._push([{"time": time.time(), "step": step, "metrics": metrics}])
            step += 1
