"""The progress output of training."""

import io
import os
from typing import Any

import pytest

from rayfuse import console
from rayfuse.training.progress import ProgressLine, format_progress

METRICS = {
    "train/loss": 1.23444,
    "train/gradient_norm": 0.713,
    "train/lr": 1e-3,
    "train/samples_per_second": 411.6,
    "train/tokens_per_second": 8304.0,
    "train/data_wait": 0.018,
    "train/memory_gigabytes": 1.24,
    "train/seconds_left": 83.9,
}


def progress(**changes: float) -> dict[str, Any]:
    metrics = METRICS | {f"train/{name}": value for name, value in changes.items()}
    return {"epoch": 3, "epochs": 12, "step": 40, "steps": 125, "metrics": metrics}


def test_one_line_of_progress() -> None:
    assert format_progress(progress()) == (
        "epoch  3/12  step  40/125  loss  1.2344  grad 0.713  lr 1.0e-03    412 samples/s  8.30k tokens/s  "
        "data wait   2%    1.2 GB     1:23 left"
    )
    assert "8.30k tokens/s  mfu 41.2%  data wait" in format_progress(progress(mfu=0.412))


def test_columns_are_aligned() -> None:
    other = {
        "loss": 12345.6, "gradient_norm": 1234.5, "lr": 3e-5, "samples_per_second": 0.41,
        "tokens_per_second": 12.0, "data_wait": 1.0, "memory_gigabytes": 79.3, "seconds_left": 9000,
    }  # fmt: skip
    one, two = format_progress(progress()), format_progress({**progress(**other), "epoch": 12, "step": 125})
    assert len(one) == len(two)
    for word in ("loss", "grad", "lr", "samples/s", "tokens/s", "data wait", "GB", "left"):
        assert one.index(word) == two.index(word), word


@pytest.mark.parametrize(
    ("loss", "shown"), [(2.06e-5, "2.1e-05"), (0.0, " 0.0000"), (-3.5, "-3.5000"), (1234.5, "   1234")]
)
def test_losses_of_any_magnitude_are_aligned(loss: float, shown: str) -> None:
    assert f"  loss {shown}  grad" in format_progress(progress(loss=loss))


def test_a_run_without_tokens_or_norm() -> None:
    few = progress()
    del few["metrics"]["train/tokens_per_second"], few["metrics"]["train/gradient_norm"]
    assert "tokens" not in format_progress(few)
    assert "grad     -" in format_progress(few)


def test_a_narrow_terminal_gets_the_most_important_columns() -> None:
    for width in range(10, 160):
        line = format_progress(progress(), width)
        assert len(line) <= width
    assert format_progress(progress(), 80).split("  ")[-1].strip() == "1:23 left"
    assert format_progress(progress(), 200) == format_progress(progress())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0.0, "0.000"), (4.2e-5, "4e-05"), (0.412, "0.412"), (0.99996, "1.00"), (4.12, "4.12"),
        (9.999, "10.0"), (41.23, "41.2"), (99.96, "100"), (999.4, "999"), (999.6, "1.00k"), (41234.0, "41.2k"),
        (412345.0, "412k"), (4.12e6, "4.12M"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    state = progress() if value is None else progress(gradient_norm=value)
    if value is None:
        del state["metrics"]["train/gradient_norm"]
    assert f"  grad {shown:>5}  lr" in format_progress(state)


@pytest.mark.parametrize(
    ("left", "shown"),
    [(0.4, "0:00"), (83.9, "1:23"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_time_left(left: float, shown: str) -> None:
    assert format_progress(progress(seconds_left=left)).endswith(f" {shown} left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def validation(step: int) -> dict[str, Any]:
    metrics = {"validation/loss": 0.5, "validation/answer/f1_macro": 0.25, "validation/answer/accuracy": 0.75}
    return {"time": 0.0, "step": step, "epoch": 3, "metrics": metrics}


VALIDATED = "epoch  3  validation  loss 0.5000  answer/accuracy 0.7500"


def test_a_file_gets_plain_lines_at_intervals() -> None:
    lines: list[str] = []
    stream = io.StringIO()
    line = ProgressLine(lines.append, stream)
    line.update([], {})
    for _ in range(3):
        line.update([], progress())
    line.update([{"time": 0.0, "step": 1, "metrics": {"train/loss": 1.0}}, {"progress": {}}], progress())
    line.update([validation(125), {"step": 125, "metrics": {}, "text": "a table"}], progress())
    line.close()
    assert lines == [format_progress(progress()), VALIDATED, "a table"]
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_live_line_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((200, 20)))
    lines: list[str] = []
    stream = Terminal()
    line = ProgressLine(lines.append, stream)
    line.update([], progress(seconds_left=90061))
    line.update([], progress())
    shorter = format_progress(progress())
    longer = format_progress(progress(seconds_left=90061))
    assert stream.getvalue().endswith("\r" + shorter + " " * (len(longer) - len(shorter)))
    line.update([validation(125)], progress())
    assert lines == [VALIDATED]
    line.close()
    line.close()
    assert stream.getvalue().endswith("\r" + " " * len(shorter) + "\r")


def test_the_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.shutil, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    stream = Terminal()
    ProgressLine(lambda _: None, stream).update([], progress())
    assert 20 < len(stream.getvalue().strip("\r")) < 60


def test_lines_go_through_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rayfuse"):
        ProgressLine(stream=io.StringIO()).update([validation(125)], {})
    assert [(record.name, record.message) for record in caplog.records] == [
        ("rayfuse.training.progress", VALIDATED)
    ]
