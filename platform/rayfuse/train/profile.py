"""Looks closely at a few steps of rank 0: a trace for Perfetto or Chrome, and a short table.

Nothing is wrapped or measured but during those steps.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayfuse.train.runs import upload

Item = TypeVar("Item")

WARMUP = 3
"""Steps before the first one that is looked at: they build buffers and caches that later steps find."""
_OPERATORS = 10
_PHASES = ("data wait", "forward", "backward", "optimizer")
_LONGEST_NAME = 48


class Profile:
    """Profiles `steps` steps of an epoch, after the run's first few; with 0 it does nothing."""

    def __init__(self, engine: Any, steps: int, run: str, say: Callable[[str], None]) -> None:
        """`run`: URL of the run's folder; `say` gets the table."""
        self._engine, self._steps, self._run, self._say = engine, steps, run, say
        self._seen = 0
        self._done = steps == 0

    def watch(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of an epoch's steps, each asked for when the step before it is done."""
        if self._done:
            yield from items
            return
        with ExitStack() as stack:
            recording: _Recording | None = None
            while True:
                if self._seen >= WARMUP - 1 and recording is None:
                    recording = stack.enter_context(_Recording(self._engine, self._steps))
                try:
                    item = recording.phase("data wait", lambda: next(items)) if recording else next(items)
                except StopIteration:
                    break
                yield item
                self._seen += 1
                if recording:
                    recording.step()
                    if recording.steps == self._steps:
                        break
        if recording and recording.steps:
            self._finish(recording)
        yield from items

    def close(self) -> None:
        """Say so where no step could be looked at."""
        if not self._done:
            self._done = True
            self._say(
                f"profile: too few steps were done: --profile leaves the first {WARMUP} out, and looks at steps of "
                "one epoch, its first one left out"
            )

    def _finish(self, recording: "_Recording") -> None:
        self._done = True
        url = recording.save(self._run)
        self._say(
            f"{recording.table()}\ntrace: {url} (open it at https://ui.perfetto.dev or chrome://tracing)"
        )


class _Recording:
    """The profiler, and the clock of the phases of a step."""

    def __init__(self, engine: Any, steps: int) -> None:
        self._engine = engine
        self._device = torch.device(getattr(engine, "device", "cpu"))
        self._phases: list[tuple[str, Any, Any]] = []
        self._ends: list[Any] = []
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities, schedule=torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1)
        )

    @property
    def steps(self) -> int:
        """Steps that were recorded: the first warms the profiler up."""
        return max(0, len(self._ends) - 1)

    def __enter__(self) -> "_Recording":
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
            delattr(self._engine, name)  # the class's own is there again

    def phase(self, name: str, work: Callable[[], Item]) -> Item:
        """Do a part of a step, named in the trace."""
        begin = self._now()
        with torch.profiler.record_function(name):
            outcome = work()
        self._phases.append((name, begin, self._now()))
        return outcome

    def step(self) -> None:
        """A step is over."""
        self._ends.append(self._now())
        if len(self._ends) == 1:
            self._phases.clear()
        self._profiler.step()

    def save(self, run: str) -> str:
        """Write the trace below the run's folder; returns its URL."""
        with tempfile.TemporaryDirectory() as folder:
            self._profiler.export_chrome_trace(str(Path(folder, "trace.json")))
            upload(Path(folder), f"{run}/profile")
        return f"{run}/profile/trace.json"

    def table(self) -> str:
        """Where the time of a step goes, and which operators take most of it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        whole = _seconds(self._ends[0], self._ends[-1])
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
        width = max([len(event.key[:_LONGEST_NAME]) for _, event in found[:_OPERATORS]] or [0])
        lines = [
            f"  {event.key[:_LONGEST_NAME]:<{width}} {event.count / self.steps:>7.0f} × "
            f"{time / self.steps / 1e3:>9.2f} ms {time / total:>6.1%}"
            for time, event in found[:_OPERATORS]
        ]
        return [f"operators by their own time on the {'GPU' if on_gpu else 'CPU'}, in a step:", *lines]

    def _now(self) -> Any:
        """Seconds of the host, or a mark in what the GPU has to do: it works behind the host."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3
