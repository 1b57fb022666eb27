"""Checkpoints of a run: complete or absent, kept by the retention policy, verified when they are read."""

import errno
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rayfuse.errors import DataError, ResourceError, UnavailableError
from rayfuse.spec.checkpointing import RetentionPolicy
from rayfuse.training import checkpoints
from rayfuse.training.checkpoints import (
    AsyncCheckpointer,
    latest_valid_checkpoint,
    list_checkpoints,
    open_checkpoint,
    sort_by_score,
)

_NUMBERS = itertools.count()
_KEEP = RetentionPolicy(last=1, best=1)


def score(metrics: Any) -> float:
    return -float(metrics["loss"])


@pytest.fixture(params=["file", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "file" else f"memory://runs/{next(_NUMBERS)}"


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY_DELAYS", (0.0, 0.0))


def content(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights of %d" % step)
        (folder / "train_state.json").write_text(f'{{"step": {step}}}')

    return write


def save(run: str, losses: dict[int, float | None], keep: RetentionPolicy = _KEEP) -> AsyncCheckpointer:
    checkpointer = AsyncCheckpointer(run, keep, score)
    for step, loss in losses.items():
        checkpointer.save(step, None if loss is None else {"loss": loss}, content(step))
    checkpointer.wait()
    return checkpointer


def steps(run: str) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run)]


def place(run: str, step: int, name: str) -> tuple[Any, str]:
    return fsspec.url_to_fs(f"{run}/checkpoints/step-{step:08d}/{name}")


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (RetentionPolicy(last=1, best=1), [50, 20]),
        (RetentionPolicy(last=2, best=1), [50, 40, 20]),
        (RetentionPolicy(last=1, best=2), [50, 30, 20]),
        (RetentionPolicy(last=3, best=2), [50, 40, 30, 20]),
    ],
)
def test_the_last_and_the_best_are_kept(keep: RetentionPolicy, expected: list[int], run: str) -> None:
    save(run, {10: 0.9, 20: 0.1, 30: 0.2, 40: None, 50: None}, keep)
    assert steps(run) == expected
    assert [c.step for c in sort_by_score(list_checkpoints(run), score)][:1] == [20]


def test_of_equal_scores_the_oldest_is_kept(run: str) -> None:
    save(run, {10: 0.5, 20: 0.5, 30: 0.7})
    assert steps(run) == [30, 10]


def test_open_checkpoint_yields_the_written_files(run: str) -> None:
    save(run, {7: 0.5})
    [checkpoint] = list_checkpoints(run)
    with open_checkpoint(checkpoint) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights of 7"
    assert checkpoint.metrics == {"loss": 0.5}


def changed_byte(fs: Any, path: str) -> None:
    fs.pipe_file(path, b"weighty of 9")


def truncated(fs: Any, path: str) -> None:
    fs.pipe_file(path, fs.cat_file(path)[:-1])


@pytest.mark.parametrize("damage", [changed_byte, truncated, lambda fs, path: fs.rm_file(path)])
def test_a_corrupt_newest_checkpoint_is_skipped_with_a_warning(damage: Any, run: str) -> None:
    save(run, {5: None, 9: None}, RetentionPolicy(last=2))
    damage(*place(run, 9, "model.safetensors"))
    warnings: list[str] = []
    found = latest_valid_checkpoint(run, warnings.append)
    assert found is not None
    assert found.step == 5
    [warning] = warnings
    assert "step-00000009" in warning
    assert "model.safetensors" in warning
    assert "resuming from the checkpoint before it" in warning
    with (
        pytest.raises(DataError, match=r"step-00000009.*model\.safetensors"),
        open_checkpoint(list_checkpoints(run)[0]),
    ):
        pass


def test_an_incomplete_checkpoint_is_ignored_and_removed_by_the_next_writer(run: str) -> None:
    save(run, {5: None, 9: None}, RetentionPolicy(last=2))
    fs, path = place(run, 9, "manifest.json")
    fs.rm_file(path)
    assert steps(run) == [5]
    AsyncCheckpointer(run, RetentionPolicy(), score)
    assert not fs.exists(place(run, 9, "model.safetensors")[1])
    assert steps(run) == [5]


def test_a_checkpoint_with_a_truncated_manifest_is_ignored(run: str) -> None:
    save(run, {5: None, 9: None}, RetentionPolicy(last=2))
    fs, path = place(run, 9, "manifest.json")
    fs.pipe_file(path, fs.cat_file(path)[:20])
    assert steps(run) == [5]


def test_saving_a_step_again_replaces_its_checkpoint(run: str) -> None:
    save(run, {5: None})
    checkpointer = AsyncCheckpointer(run, RetentionPolicy(), score)
    checkpointer.save(5, {"loss": 1.0}, lambda folder: (folder / "other.json").write_text("{}"))
    checkpointer.wait()
    [checkpoint] = list_checkpoints(run)
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


def test_temporary_storage_errors_are_retried(run: str) -> None:
    checkpointer = AsyncCheckpointer(run, RetentionPolicy(), score)
    checkpointer.save(3, None, failing(2, ConnectionError("reset by peer")))
    checkpointer.wait()
    assert steps(run) == [3]


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (
            ConnectionError("reset by peer"),
            UnavailableError,
            "after 3 attempts: ConnectionError: reset by peer",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ResourceError,
            "No space left on device; free some space",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError, "Disk quota exceeded; free some space"),
    ],
)
def test_a_permanent_storage_error_is_raised_by_the_next_save(
    error: Exception, kind: type[Exception], reason: str, run: str
) -> None:
    checkpointer = save(run, {1: None})
    checkpointer.save(3, None, failing(99, error))
    with pytest.raises(kind, match=reason):
        checkpointer.save(4, None, content(4))
    assert steps(run) == [1]
    checkpointer.save(4, None, content(4))
    checkpointer.wait()
    assert steps(run) == [4]


def test_a_run_that_is_removed_ends_with_the_reason_and_does_not_come_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    checkpointer = save(str(run), {1: None})
    shutil.rmtree(run)
    checkpointer.save(2, None, content(2))
    with pytest.raises(ResourceError, match=r"run: the folder of the run does not exist any more.*unmounted"):
        checkpointer.wait()
    assert not run.exists()
    with pytest.raises(ResourceError, match="does not exist any more"):
        AsyncCheckpointer(str(run), _KEEP, score)


def test_a_run_whose_storage_comes_back_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY_DELAYS", (0.1,) * 100)
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    checkpointer = save(str(run), {1: None})
    run.rename(away)
    checkpointer.save(2, None, content(2))
    checkpointer.raise_error()
    away.rename(run)
    checkpointer.wait()
    assert steps(str(run)) == [2]


def test_a_failed_checkpoint_is_reported_before_the_next_save(tmp_path: Path) -> None:
    checkpointer = save(str(tmp_path), {1: None})
    checkpointer.save(3, None, failing(99, OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ResourceError, match="No space left"):
        raise_error_soon(checkpointer)


def raise_error_soon(checkpointer: AsyncCheckpointer) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        checkpointer.raise_error()
        time.sleep(0.01)


def test_a_run_without_checkpoints(run: str) -> None:
    assert list_checkpoints(run) == []
    assert latest_valid_checkpoint(run, print) is None
