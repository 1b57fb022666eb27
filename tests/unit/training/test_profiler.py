"""Profiles of a few steps, with a torch module instead of DeepSpeed's engine."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayfuse.training.profiler import StepProfiler


class Engine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


def train(profile: StepProfiler, engine: Engine, epochs: list[int], log: Any) -> list[list[int]]:
    """Train epochs of these lengths; return the items of each epoch."""
    seen = []
    for steps in epochs:
        numbers = []
        for number in profile.wrap(iter(range(steps)), log):
            engine.backward(engine(torch.ones(2, 8)).sum())
            engine.step()
            numbers.append(number)
        seen.append(numbers)
    profile.close(log)
    return seen


def profile_epochs(folder: Path, steps: int, epochs: list[int]) -> tuple[list[str], list[list[int]], Engine]:
    messages: list[str] = []
    engine: Any = Engine()
    seen = train(StepProfiler(engine, steps, str(folder)), engine, epochs, messages.append)
    return messages, seen, engine


def test_a_trace_and_a_table_of_some_steps(tmp_path: Path) -> None:
    messages, seen, engine = profile_epochs(tmp_path, 2, [7, 3])
    assert seen == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2]]
    [text] = messages
    lines = text.splitlines()
    assert lines[0].startswith("profile of 2 steps, ")
    assert [line.split("  ")[1] for line in lines[1:6]] == [
        "data wait", "forward", "backward", "optimizer", "other"
    ]  # fmt: skip
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[1:6]]
    assert 99 < sum(shares) < 101
    assert any("addmm" in line for line in lines[7:])
    assert lines[-1].startswith(f"trace: {tmp_path}/profile/trace.json ")
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("ph") == "X"]
    assert names.count("forward") == names.count("backward") == 2
    assert not {"forward", "backward", "step"} & set(vars(engine))  # the engine is as it was


def test_an_epoch_that_ends_early_is_enough(tmp_path: Path) -> None:
    messages, seen, engine = profile_epochs(tmp_path, 5, [2, 4, 4])
    assert list(map(len, seen)) == [2, 4, 4]
    assert messages[0].startswith("profile of 3 steps, ")
    assert len(messages) == 1
    assert "forward" not in vars(engine)


def test_a_run_that_is_too_short_is_logged(tmp_path: Path) -> None:
    messages, seen, engine = profile_epochs(tmp_path, 5, [1, 1, 1])
    assert seen == [[0], [0], [0]]
    assert len(messages) == 1
    assert messages[0].startswith("profile: the run has too few steps")
    assert "forward" not in vars(engine)
    assert not (tmp_path / "profile").exists()


def test_zero_steps_are_not_profiled(tmp_path: Path) -> None:
    messages, seen, _ = profile_epochs(tmp_path, 0, [5])
    assert (messages, seen) == ([], [[0, 1, 2, 3, 4]])


def test_an_error_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    engine: Any = Engine()
    steps = StepProfiler(engine, 2, str(tmp_path)).wrap(iter(range(9)), print)
    for _ in range(4):
        next(steps)
    assert "forward" in vars(engine)
    steps.close()  # as an error in a step does
    assert "forward" not in vars(engine)
