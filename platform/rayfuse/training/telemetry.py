"""Telemetry of rank 0 for the driver: losses, throughput, memory, and system metrics."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from rayfuse.data.collate import Batch
from rayfuse.training.flops import FlopCount, device_peak_flops
from rayfuse.training.metrics_actor import Record, RecordSender
from rayfuse.training.step_metrics import StepMetrics

_RECORD_SECONDS = 1.0
_SYSTEM_SECONDS = 10.0


class Telemetry:
    """Metrics, messages and progress of rank 0, for the driver; without a sender it does nothing."""

    def __init__(
        self,
        sender: RecordSender | None,
        device: torch.device,
        world_size: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sender, self.device, self._world = sender, device, world_size
        self._peak_flops = device_peak_flops(device) if sender is not None else None
        self._flops = FlopCount()
        self._steps: list[StepMetrics] = []
        self._clock = clock
        self._last_report = clock()
        self._stopped = threading.Event()
        if sender is not None:
            threading.Thread(target=self._log_system_metrics, name="system-metrics", daemon=True).start()

    def log_metrics(self, step: int, metrics: dict[str, float], **more: int) -> None:
        """Send metrics for the journal of the run; `more` are further fields of the record."""
        self._push([{"time": time.time(), "step": step, "metrics": metrics, **more}])

    def log_text(self, step: int, text: str) -> None:
        """Send a line for the progress output and the journal."""
        self._push([{"time": time.time(), "step": step, "metrics": {}, "text": text}])

    def count_flops(self, batches: Sequence[Batch]) -> AbstractContextManager[None]:
        """Return a context for a step over micro-batches, which counts FLOPs where the device's peak is known."""
        return self._flops.count_step(batches) if self._peak_flops else nullcontext()

    def log_step(self, step_metrics: StepMetrics, steps: int, epochs: int) -> None:
        """Add one of the `steps` of an epoch; send the sums about once a second, and at the end of the epoch."""
        if self._sender is None:
            return
        self._steps.append(step_metrics)
        place = step_metrics.position
        seconds = step_metrics.time - self._last_report
        if seconds < _RECORD_SECONDS and place.step_in_epoch + 1 < steps:
            return
        left = (
            (steps - place.step_in_epoch - 1 + steps * (epochs - place.epoch - 1))
            * seconds
            / len(self._steps)
        )
        metrics = self._metrics(max(seconds, 1e-9)) | {"train/lr": place.lr, "train/seconds_left": left}
        self.log_metrics(place.step, metrics)
        self._sender.set_progress(
            {"epoch": place.epoch + 1, "epochs": epochs, "step": place.step_in_epoch + 1, "steps": steps,
             "metrics": metrics}
        )  # fmt: skip
        self._steps, self._last_report = [], step_metrics.time

    def reset_timer(self) -> None:
        """Restart the timer of the rates, after time that was not training."""
        self._steps, self._last_report = [], self._clock()

    def close(self) -> None:
        """Stop the thread that sends system metrics."""
        self._stopped.set()

    def _metrics(self, seconds: float) -> dict[str, float]:
        """Return the metrics of the steps since the last report, which took `seconds`."""
        steps = self._steps
        rows = sum(one.rows for one in steps)
        norms = [
            one.gradient_norm
            for one in steps
            if one.gradient_norm is not None and math.isfinite(one.gradient_norm)
        ]
        found = {"train/loss": sum(one.loss * one.rows for one in steps) / rows}
        found |= self._loss_term_metrics(rows)
        if norms:
            found["train/gradient_norm"] = sum(norms) / len(norms)
        found |= {"train/samples_per_second": rows / seconds, **self._tokens(seconds)}
        if self._peak_flops:
            found["train/mfu"] = self._flops.per_row * rows / seconds / (self._world * self._peak_flops)
        return found | {
            "train/data_wait": min(1.0, sum(one.data_wait_seconds for one in steps) / seconds),
            "train/step_seconds": seconds / len(steps),
            "train/memory_gigabytes": self._memory() / 1e9,
        }

    def _loss_term_metrics(self, rows: int) -> dict[str, float]:
        """Return the mean of each term of the loss, if there are several."""
        names = self._steps[0].loss_terms
        if len(names) < 2:
            return {}
        return {
            f"train/loss/{name}": sum(one.loss_terms[name] * one.rows for one in self._steps) / rows
            for name in names
        }

    def _tokens(self, seconds: float) -> dict[str, float]:
        """Return tokens per second in all and, with several inputs, of each, without padding; and the padding."""
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
        """Return bytes in use: the peak of the GPU, or the current memory of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _push(self, records: list[Record]) -> None:
        if self._sender is not None:
            self._sender.send(records)

    def _log_system_metrics(self) -> None:
        import psutil

        psutil.cpu_percent()
        step = 0
        while not self._stopped.wait(_SYSTEM_SECONDS):
            memory = psutil.virtual_memory()
            metrics = {
                "system/cpu_utilization_percentage": psutil.cpu_percent(),
                "system/system_memory_usage_megabytes": memory.used / 1e6,
                "system/system_memory_usage_percentage": memory.percent,
                "system/disk_usage_percentage": psutil.disk_usage("/").percent,
            }
            if self.device.type == "cuda":
                metrics["system/gpu_memory_usage_megabytes"] = torch.cuda.memory_reserved(self.device) / 1e6
                with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # needs the package nvidia-ml-py
                    metrics["system/gpu_utilization_percentage"] = float(torch.cuda.utilization(self.device))
            self._push([{"time": time.time(), "step": step, "metrics": metrics}])
            step += 1
