"""Profile a few steps of rank 0: a trace for Perfetto or Chrome, and a table of where the time goes.

Nothing is wrapped or measured outside of those steps.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from rayfuse.training.runs import upload

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Item = TypeVar("Item")
Timestamp = float | torch.cuda.Event
"""Seconds of the host, or an event on the GPU."""

WARMUP_STEPS = 3
"""Steps before the first profiled one, which allocate buffers and fill caches."""
_TOP_OPERATORS = 10
_PHASES = ("data wait", "forward", "backward", "optimizer")
_MAX_NAME_LENGTH = 48


class StepProfiler:
    """Profiler of `steps` steps of one epoch, after the warm-up steps of the run; with 0 it does nothing."""

    def __init__(self, engine: "DeepSpeedEngine", steps: int, run: str) -> None:
        """`run` is the URL of the run's folder, which gets the trace."""
        self._engine, self._steps, self._run = engine, steps, run
        self._steps_seen = 0
        self._done = steps == 0

    def wrap(self, items: Iterator[Item], log: Callable[[str], None]) -> Iterator[Item]:
        """Yield the items of an epoch's steps, and profile the steps between them; `log` gets the table."""
        if self._done:
            yield from items
            return
        with ExitStack() as stack:
            recording: _ProfilerSession | None = None
            while True:
                if self._steps_seen >= WARMUP_STEPS - 1 and recording is None:
                    recording = stack.enter_context(_ProfilerSession(self._engine, self._steps))
                try:
                    item = recording.phase("data wait", lambda: next(items)) if recording else next(items)
                except StopIteration:
                    break
                yield item
                self._steps_seen += 1
                if recording:
                    recording.step()
                    if recording.steps == self._steps:
                        break
        if recording and recording.steps:
            self._finish(recording, log)
        yield from items

    def close(self, log: Callable[[str], None]) -> None:
        """Log a message if the run had too few steps to profile."""
        if not self._done:
            self._done = True
            log(
                f"profile: the run has too few steps: --profile skips the first {WARMUP_STEPS} steps and the first step "
                "of an epoch, and profiles steps of one epoch"
            )

    def _finish(self, recording: "_ProfilerSession", log: Callable[[str], None]) -> None:
        self._done = True
        url = recording.save(self._run)
        log(f"{recording.table()}\ntrace: {url} (open it at https://ui.perfetto.dev or chrome://tracing)")


class _ProfilerSession:
    """PyTorch's profiler, and the time of each phase of a step."""

    def __init__(self, engine: "DeepSpeedEngine", steps: int) -> None:
        self._engine = engine
        self._device = torch.device(getattr(engine, "device", "cpu"))
        self._phases: list[tuple[str, Timestamp, Timestamp]] = []
        self._step_ends: list[Timestamp] = []
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities, schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1)
        )

    @property
    def steps(self) -> int:
        """Number of recorded steps; the first one, which warms the profiler up, does not count."""
        return max(0, len(self._step_ends) - 1)

    def __enter__(self) -> "_ProfilerSession":
        engine, forward = self._engine, self._engine.forward
        backward, step = engine.backward, engine.step
        engine.forward = lambda *args, **kwargs: self.phase("forward", lambda: forward(*args, **kwargs))
        engine.backward = lambda *args, **kwargs: self.phase("backward", lambda: backward(*args, **kwargs))
        engine.step = lambda *args, **kwargs: self.phase("optimizer", lambda: step(*args, **kwargs))
        self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.stop()
        for name in ("forward", "backward", "step"):
            delattr(self._engine, name)  # uncovers the method of the class

    def phase(self, name: str, fn: Callable[[], Item]) -> Item:
        """Run a phase of a step under its name in the trace."""
        begin = self._timestamp()
        with torch.profiler.record_function(name):
            outcome = fn()
        self._phases.append((name, begin, self._timestamp()))
        return outcome

    def step(self) -> None:
        """Record the end of a step."""
        self._step_ends.append(self._timestamp())
        if len(self._step_ends) == 1:
            self._phases.clear()
        self._profiler.step()

    def save(self, run: str) -> str:
        """Write the trace below the URL of the run; return its URL."""
        with tempfile.TemporaryDirectory() as folder:
            self._profiler.export_chrome_trace(str(Path(folder, "trace.json")))
            upload(Path(folder), f"{run}/profile")
        return f"{run}/profile/trace.json"

    def table(self) -> str:
        """Return a table of the time of each phase of a step and of the slowest operators."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        whole = _seconds(self._step_ends[0], self._step_ends[-1])
        spent = {
            name: sum(_seconds(begin, end) for phase, begin, end in self._phases if phase == name)
            for name in _PHASES
        }
        spent["other"] = max(0.0, whole - sum(spent.values()))
        lines = [
            f"profile of {self.steps} {'step' if self.steps == 1 else 'steps'}, {whole / self.steps * 1e3:.1f} ms each:"
        ]
        lines += [
            f"  {name:<10} {seconds / self.steps * 1e3:>9.2f} ms {seconds / whole:>6.1%}"
            for name, seconds in spent.items()
        ]
        return "\n".join([*lines, *self._operators()])

    def _operators(self) -> list[str]:
        on_gpu = self._device.type == "cuda"
        found = [
            (float(event.self_device_time_total if on_gpu else event.self_cpu_time_total), event)
            for event in self._profiler.key_averages()
            if event.device_type == torch.autograd.DeviceType.CPU  # a kernel's time is also its operator's
            and event.key not in _PHASES
            and not event.key.startswith("ProfilerStep")
        ]
        found.sort(key=lambda pair: pair[0], reverse=True)
        total = sum(time for time, _ in found) or 1.0
        width = max([len(event.key[:_MAX_NAME_LENGTH]) for _, event in found[:_TOP_OPERATORS]] or [0])
        lines = [
            f"  {event.key[:_MAX_NAME_LENGTH]:<{width}} {event.count / self.steps:>7.0f} × "
            f"{time / self.steps / 1e3:>9.2f} ms {time / total:>6.1%}"
            for time, event in found[:_TOP_OPERATORS]
        ]
        return [f"operators by self time on the {'GPU' if on_gpu else 'CPU'}, per step:", *lines]

    def _timestamp(self) -> Timestamp:
        """Return the host's time, or a CUDA event, because the GPU runs behind the host."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(begin: Timestamp, end: Timestamp) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return float(begin.elapsed_time(end)) / 1e3
