"""A writing thread takes little of the processors until somebody waits for it, and what it began becomes whole."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayfuse.errors import RayfuseError
from rayfuse.spec.checkpointing import Keep
from rayfuse.train import pace
from rayfuse.train.checkpoints import Saver, find
from rayfuse.train.pace import Pace


@pytest.fixture(autouse=True)
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that no test here could pass by waiting for their end."""
    monkeypatch.setattr(pace, "_LONGEST", 3600.0)


def work() -> None:
    """A millisecond of processor time."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass


def pausing(saver: Saver, paused: threading.Event) -> Callable[[Path], None]:
    """Writes a file, after a pause that at one millionth of a processor takes a quarter of an hour and more."""

    def write(folder: Path) -> None:
        work()
        paused.set()
        saver.pause()
        (folder / "model.safetensors").write_bytes(b"weights")

    return write


def begun(folder: Path) -> Saver:
    """One whose thread is in such a pause."""
    saver, paused = Saver(str(folder), Keep(), lambda metrics: 0.0, share=1e-6), threading.Event()
    saver.save(1, None, pausing(saver, paused))
    assert paused.wait(30)
    assert not find(str(folder))
    return saver


def test_whoever_waits_ends_the_pauses(tmp_path: Path) -> None:
    saver = begun(tmp_path)
    saver.wait()
    assert [checkpoint.step for checkpoint in find(str(tmp_path))] == [1]
    saver.save(2, None, pausing(saver, threading.Event()))  # the next one pauses again
    assert [checkpoint.step for checkpoint in find(str(tmp_path))] == [1]
    saver.hurry()
    saver.wait()
    assert find(str(tmp_path))[0].step == 2


def test_an_error_does_not_cut_a_checkpoint_off(tmp_path: Path) -> None:
    with pytest.raises(RayfuseError, match="the loss is nan"), begun(tmp_path):
        raise RayfuseError("the loss is nan")
    assert [checkpoint.step for checkpoint in find(str(tmp_path))] == [1]


def test_pauses_are_as_long_as_the_work_asks_for_and_not_longer_than_all_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(timeout)
            return True

    monkeypatch.setattr(threading, "Event", Recorded)
    monkeypatch.setattr(pace, "_LONGEST", 0.5)
    for share in (1.0, 0.1):
        slow = Pace(share)
        slow.begin()
        for _ in range(100):
            work()
            slow.pause()
        if share == 1.0:
            assert not waited
    assert min(waited[:-1]) >= 0.009  # nine times the millisecond of work
    assert sum(waited) == pytest.approx(0.5)
