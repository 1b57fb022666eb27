"""Checkpoints of a run: whole or not at all, kept as the spec says, and read only as they were written."""

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rayfuse.errors import DataError, NotReachable, ResourceError
from rayfuse.spec.checkpointing import Keep
from rayfuse.train import checkpoints
from rayfuse.train.checkpoints import Saver, best_first, find, newest, opened

_NUMBERS = itertools.count()
_KEEP = Keep(last=1, best=1)


def goodness(metrics: Any) -> float:
    return -float(metrics["loss"])


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://runs/{next(_NUMBERS)}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_PAUSES", (0.0, 0.0))


def content(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights of %d" % step)
        (folder / "position.json").write_text(f'{{"step": {step}}}')

    return write


def save(run: str, losses: dict[int, float | None], keep: Keep = _KEEP) -> Saver:
    saver = Saver(run, keep, goodness)
    for step, loss in losses.items():
        saver.save(step, None if loss is None else {"loss": loss}, content(step))
    saver.wait()
    return saver


def steps(run: str) -> list[int]:
    return [checkpoint.step for checkpoint in find(run)]


def place(run: str, step: int, name: str) -> tuple[Any, str]:
    return fsspec.url_to_fs(f"{run}/checkpoints/step-{step:08d}/{name}")


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(last=1, best=1), [50, 20]),
        (Keep(last=2, best=1), [50, 40, 20]),
        (Keep(last=1, best=2), [50, 30, 20]),
        (Keep(last=3, best=2), [50, 40, 30, 20]),
    ],
)
def test_keeps_the_last_and_the_best(keep: Keep, stay: list[int], run: str) -> None:
    save(run, {10: 0.9, 20: 0.1, 30: 0.2, 40: None, 50: None}, keep)
    assert steps(run) == stay
    assert [c.step for c in best_first(find(run), goodness)][:1] == [20]


def test_of_equally_good_ones_the_first_stays(run: str) -> None:
    save(run, {10: 0.5, 20: 0.5, 30: 0.7})
    assert steps(run) == [30, 10]


def test_opens_what_was_written(run: str) -> None:
    save(run, {7: 0.5})
    [checkpoint] = find(run)
    with opened(checkpoint) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights of 7"
    assert checkpoint.metrics == {"loss": 0.5}


def other_byte(fs: Any, path: str) -> None:
    fs.pipe_file(path, b"weighty of 9")


def shorter(fs: Any, path: str) -> None:
    fs.pipe_file(path, fs.cat_file(path)[:-1])


@pytest.mark.parametrize("damage", [other_byte, shorter, lambda fs, path: fs.rm_file(path)])
def test_a_broken_newest_one_costs_a_checkpoint_and_not_the_run(damage: Any, run: str) -> None:
    save(run, {5: None, 9: None}, Keep(last=2))
    damage(*place(run, 9, "model.safetensors"))
    said: list[str] = []
    found = newest(run, said.append)
    assert found is not None
    assert found.step == 5
    [warning] = said
    assert "step-00000009" in warning
    assert "model.safetensors" in warning
    assert "the one before" in warning
    with pytest.raises(DataError, match=r"step-00000009.*model\.safetensors"), opened(find(run)[0]):
        pass


def test_half_a_checkpoint_is_none_and_is_removed_by_the_next_writer(run: str) -> None:
    save(run, {5: None, 9: None}, Keep(last=2))
    fs, path = place(run, 9, "complete.json")
    fs.rm_file(path)
    assert steps(run) == [5]
    Saver(run, Keep(), goodness)
    assert not fs.exists(place(run, 9, "model.safetensors")[1])
    assert steps(run) == [5]


def test_a_cut_off_note_of_completion_counts_for_nothing(run: str) -> None:
    save(run, {5: None, 9: None}, Keep(last=2))
    fs, path = place(run, 9, "complete.json")
    fs.pipe_file(path, fs.cat_file(path)[:20])
    assert steps(run) == [5]


def test_a_step_that_is_written_again_takes_the_place_of_the_first(run: str) -> None:
    save(run, {5: None})
    saver = Saver(run, Keep(), goodness)
    saver.save(5, {"loss": 1.0}, lambda folder: (folder / "other.json").write_text("{}"))
    saver.wait()
    [checkpoint] = find(run)
    assert list(checkpoint.files) == ["other.json"]
    fs, path = place(run, 5, "model.safetensors")
    assert not fs.exists(path)


def failing(times: int, error: Exception) -> Callable[[Path], None]:
    left = [times]

    def write(folder: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise error
        content(3)(folder)

    return write


def test_a_storage_that_comes_back_costs_nothing(run: str) -> None:
    saver = Saver(run, Keep(), goodness)
    saver.save(3, None, failing(2, ConnectionError("reset by peer")))
    saver.wait()
    assert steps(run) == [3]


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ConnectionError("reset by peer"), NotReachable, "after 3 attempts: ConnectionError: reset by peer"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ResourceError,
            "No space left on device; make room",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError, "Disk quota exceeded; make room"),
    ],
)
def test_a_storage_that_stays_away_is_told_to_the_next_save(
    error: Exception, kind: type[Exception], reason: str, run: str
) -> None:
    saver = save(run, {1: None})
    saver.save(3, None, failing(99, error))
    with pytest.raises(kind, match=reason):
        saver.save(4, None, content(4))
    assert steps(run) == [1]
    saver.save(4, None, content(4))
    saver.wait()
    assert steps(run) == [4]


def test_a_run_without_checkpoints(run: str) -> None:
    assert find(run) == []
    assert newest(run, print) is None
