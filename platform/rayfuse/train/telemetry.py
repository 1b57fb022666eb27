"""What rank 0 tells the driver while it trains: losses, rates, memory, and the machine's own numbers."""

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rayfuse.data.batches import Batch
from rayfuse.train.board import Record
from rayfuse.train.flops import FlopCount, device_peak
from rayfuse.train.meter import Measured

_RECORD_SECONDS = 1.0
_SYSTEM_SECONDS = 10.0


class Telemetry:
    """Sends records and progress to the driver's board; without a board it does nothing."""

    def __init__(self, board: Any, device: torch.device, world: int = 1) -> None:
        self.board, self.device, self._world = board, device, world
        self._peak = device_peak(device) if board is not None else None
        self._flops = FlopCount()
        self._steps: list[Measured] = []
        self._since = time.perf_counter()
        self._done = threading.Event()
        if board is not None:
            threading.Thread(target=self._watch_system, name="system-metrics", daemon=True).start()

    def record(self, step: int, metrics: dict[str, float], **more: int) -> None:
        """Keep metrics for the run's history."""
        self._push([{"time": time.time(), "step": step, "metrics": metrics, **more}])

    def say(self, step: int, text: str) -> None:
        """Tell people something; the history keeps it."""
        self._push([{"time": time.time(), "step": step, "metrics": {}, "text": text}])

    def counting(self, batches: Sequence[Batch]) -> AbstractContextManager[None]:
        """Around a step over rank 0's micro-batches: now and then its arithmetic is counted, where a peak is known."""
        return self._flops.step(batches) if self._peak else nullcontext()

    def step(self, measured: Measured, steps: int, epochs: int) -> None:
        """Note one of the `steps` of an epoch; about once a second, and at the end of an epoch, they are reported."""
        if self.board is None:
            return
        self._steps.append(measured)
        place = measured.place
        seconds = measured.time - self._since
        if seconds < _RECORD_SECONDS and place.number + 1 < steps:
            return
        left = (steps - place.number - 1 + steps * (epochs - place.epoch - 1)) * seconds / len(self._steps)
        metrics = self._metrics(max(seconds, 1e-9)) | {"train/lr": place.lr, "train/seconds_left": left}
        self.record(place.step, metrics)
        self.board.show.remote(
            {"epoch": place.epoch + 1, "epochs": epochs, "step": place.number + 1, "steps": steps,
             "metrics": metrics}
        )  # fmt: skip
        self._steps, self._since = [], measured.time

    def resume_clock(self) -> None:
        """Start the rates anew, after time that was not training."""
        self._steps, self._since = [], time.perf_counter()

    def close(self) -> None:
        self._done.set()

    def _metrics(self, seconds: float) -> dict[str, float]:
        """Of the steps since the last report, which took so many seconds."""
        steps = self._steps
        rows = sum(one.rows for one in steps)
        norms = [
            one.gradient_norm
            for one in steps
            if one.gradient_norm is not None and math.isfinite(one.gradient_norm)
        ]
        found = {"train/loss": sum(one.loss * one.rows for one in steps) / rows}
        found |= self._parts(rows)
        if norms:
            found["train/gradient_norm"] = sum(norms) / len(norms)
        found |= {"train/samples_per_second": rows / seconds, **self._tokens(seconds)}
        if self._peak:
            found["train/mfu"] = self._flops.per_row * rows / seconds / (self._world * self._peak)
        return found | {
            "train/data_wait": min(1.0, sum(one.waited for one in steps) / seconds),
            "train/step_seconds": seconds / len(steps),
            "train/memory_gigabytes": self._memory() / 1e9,
        }

    def _parts(self, rows: int) -> dict[str, float]:
        """What the loss is made of, where that is more than one thing."""
        names = self._steps[0].parts
        if len(names) < 2:
            return {}
        return {
            f"train/loss/{name}": sum(one.parts[name] * one.rows for one in self._steps) / rows
            for name in names
        }

    def _tokens(self, seconds: float) -> dict[str, float]:
        """Rates over all inputs and, where there are several, of each, without padding; and each one's padding."""
        sums: dict[str, tuple[int, int]] = {}
        for one in self._steps:
            for name, (real, padded) in one.tokens.items():
                before = sums.get(name, (0, 0))
                sums[name] = before[0] + real, before[1] + padded
        if not sums:
            return {}
        found = {"train/tokens_per_second": sum(real for real, _ in sums.values()) / seconds}
        if len(sums) > 1:
            found |= {f"train/tokens_per_second/{name}": real / seconds for name, (real, _) in sums.items()}
        return found | {f"train/padding/{name}": 1 - real / padded for name, (real, padded) in sums.items()}

    def _memory(self) -> int:
        """Bytes that this worker holds: the most of its GPU so far, else of the host now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _push(self, records: list[Record]) -> None:
        if self.board is not None:
            self.board.push.remote(records)

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
