"""What a worker reports, and what people see of it."""

import io
import time
from typing import Any

import pytest
import torch

from rayfuse.errors import RayfuseError
from rayfuse.train import telemetry as module
from rayfuse.train.board import Board
from rayfuse.train.progress import ProgressLine, describe
from rayfuse.train.telemetry import Telemetry

CPU = torch.device("cpu")


class Remote:
    """A board whose methods are called as an actor's."""

    def __init__(self) -> None:
        self.board = Board()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.board, name)
        return type("Method", (), {"remote": staticmethod(method)})


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def telemetry(remote: Remote) -> Any:
    telemetry = Telemetry(remote, CPU)
    yield telemetry
    telemetry.close()


def step(telemetry: Telemetry, number: int, loss: float, steps: int = 10, rows: int = 16) -> None:
    telemetry.step(0, 2, number, steps, number, rows, torch.tensor(loss))


def test_a_board_hands_out_what_is_new() -> None:
    board = Board()
    board.push([{"step": 1}, {"step": 2}])
    board.show({"epoch": 1})
    assert board.pull(0) == ([{"step": 1}, {"step": 2}], {"epoch": 1})
    board.push([{"step": 3}])
    assert board.pull(2) == ([{"step": 3}], {"epoch": 1})
    assert board.pull(3) == ([], {"epoch": 1})


def test_steps_are_reported_about_once_a_second_and_at_the_end(telemetry: Telemetry, remote: Remote) -> None:
    for number in range(1, 11):
        step(telemetry, number, float(number))
    [record] = remote.board.records
    assert record["step"] == 10
    assert record["metrics"]["train/loss"] == pytest.approx(5.5)
    assert record["metrics"]["train/rows_per_second"] > 0
    progress = remote.board.progress
    assert (progress["epoch"], progress["epochs"], progress["step"], progress["steps"]) == (1, 2, 10, 10)
    assert progress["memory"] > 1e6
    telemetry._since = time.perf_counter() - 2.0
    step(telemetry, 1, 3.0)
    assert remote.board.records[1]["metrics"] == pytest.approx(
        {"train/loss": 3.0, "train/rows_per_second": 8.0}, rel=0.05
    )
    assert remote.board.progress["left"] == pytest.approx((9 + 10) * 2, rel=0.05)


def test_the_clock_stands_still_while_validating(telemetry: Telemetry, remote: Remote) -> None:
    telemetry._since -= 1000
    telemetry.resume_clock()
    step(telemetry, 10, 1.0)
    assert remote.board.records[0]["metrics"]["train/rows_per_second"] > 16


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("board", [None, Remote()])
def test_a_loss_that_is_no_number_ends_the_run(loss: float, board: Any) -> None:
    telemetry = Telemetry(board, CPU)
    step(telemetry, 1, 1.0)
    step(telemetry, 2, loss)
    with pytest.raises(
        RayfuseError, match=r"the loss is (nan|inf) at step 10; lower train.optimizer.lr or set"
    ):
        step(telemetry, 10, 1.0)
    telemetry.close()


def test_the_machine_is_watched(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SYSTEM_SECONDS", 0.01)
    telemetry = Telemetry(remote, CPU)
    deadline = time.monotonic() + 5
    while len(remote.board.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    telemetry.close()
    first, second = remote.board.records[:2]
    assert (first["step"], second["step"]) == (0, 1)
    assert 0 < first["metrics"]["system/system_memory_usage_percentage"] <= 100
    assert not [name for name in first["metrics"] if "gpu" in name]


PROGRESS = {
    "epoch": 3, "epochs": 12, "step": 40, "steps": 125, "loss": 1.23444, "rate": 411.6, "left": 83.9, "memory": 1.24e9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("left", "shown"),
    [(0.4, "0:00"), (83.9, "1:23"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_one_line_of_progress(left: float, shown: str) -> None:
    assert describe({**PROGRESS, "left": left}) == (
        f"epoch  3/12  step   40/125  loss 1.2344  412 rows/s  {shown} left  1.2 GB"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def validation(step: int) -> dict[str, Any]:
    metrics = {"validation/loss": 0.5, "validation/answer/f1_macro": 0.25, "validation/answer/accuracy": 0.75}
    return {"time": 0.0, "step": step, "metrics": metrics}


def test_a_file_gets_plain_lines_now_and_then() -> None:
    said: list[str] = []
    stream = io.StringIO()
    line = ProgressLine(said.append, stream)
    line.show([], {})
    for _ in range(3):
        line.show([], PROGRESS)
    line.show([{"time": 0.0, "step": 1, "metrics": {"train/loss": 1.0}}, {"progress": {}}], PROGRESS)
    line.show([validation(125)], PROGRESS)
    line.close()
    assert said == [
        describe(PROGRESS),
        "step    125  validation/loss 0.5000  validation/answer/accuracy 0.7500",
    ]
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_live_line_that_leaves_nothing_behind() -> None:
    said: list[str] = []
    stream = Terminal()
    line = ProgressLine(said.append, stream)
    line.show([], {**PROGRESS, "left": 90061})
    line.show([], PROGRESS)
    shorter = describe(PROGRESS)
    assert stream.getvalue().endswith("\r" + shorter + " " * (len("25:01:01") - len("1:23")))
    line.show([validation(125)], PROGRESS)
    assert len(said) == 1
    line.close()
    line.close()
    assert stream.getvalue().endswith("\r" + " " * len(shorter) + "\r")
