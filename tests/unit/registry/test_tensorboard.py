"""Event files, parsed with the protobuf classes of tensorboardX."""

import struct
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny_jobs

from rayfuse.registry.tensorboard import check_installed, event_files

RECORDS: list[dict[str, Any]] = [
    {"time": 100.0, "step": 0, "metrics": {}, "first_step": 0},
    {"time": 101.0, "step": 5, "metrics": {"train/loss": 1.5, "train/loss/align/contrastive": 0.5}},
    {"time": 102.0, "step": 9, "metrics": {"validation/loss": 1.0}, "epoch": 1},
    {"time": 103.0, "step": 9, "metrics": {}, "text": "a table"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


def job_with(folder: Path, wanted: bool) -> Any:
    return tiny_jobs.tiny_job(folder, **{"output.tensorboard": wanted})


def events(content: bytes) -> list[Any]:
    """Parse an event file: records of length, checksum, protobuf, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, place = [], 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        found.append(Event.FromString(content[place + 12 : place + 12 + size]))
        place += size + 16
    return found


def scalars(contents: list[bytes]) -> set[tuple[str, int, float, float]]:
    return {
        (value.tag, event.step, value.simple_value, event.wall_time)
        for content in contents
        for event in events(content)
        for value in event.summary.value
    }


SCALARS = {
    ("train/loss", 5, 1.5, 101.0),
    ("train/loss/align/contrastive", 5, 0.5, 101.0),
    ("validation/loss", 9, 1.0, 102.0),
}


def test_all_metrics_are_written(folder: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    with event_files(job_with(folder, True), str(tmp_path / "tensorboard"), messages.append) as log:
        log(RECORDS)
    files = list((tmp_path / "tensorboard").iterdir())
    assert scalars([file.read_bytes() for file in files]) == SCALARS
    assert messages == []


def test_a_restart_purges_repeated_steps(folder: Path, tmp_path: Path) -> None:
    with event_files(job_with(folder, True), str(tmp_path), print) as log:
        log(RECORDS)
        log([{"time": 110.0, "step": 5, "metrics": {}, "first_step": 0}])
    marks = [
        event.step
        for file in tmp_path.iterdir()
        for event in events(file.read_bytes())
        if event.HasField("session_log")
    ]
    assert sorted(marks) == [1, 6]


def test_files_at_any_url(folder: Path) -> None:
    with event_files(job_with(folder, True), "memory://events/run", print) as log:
        log(RECORDS)
    memory = fsspec.filesystem("memory")
    assert scalars([memory.cat_file(path) for path in memory.find("/events/run")]) == SCALARS


def test_nothing_is_written_if_it_is_off(folder: Path, tmp_path: Path) -> None:
    with event_files(job_with(folder, False), str(tmp_path / "tensorboard"), print) as log:
        log(RECORDS)
    assert not (tmp_path / "tensorboard").exists()


def test_the_first_error_is_logged(folder: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    with event_files(job_with(folder, True), str(tmp_path), messages.append) as log:
        log([{"step": 1, "time": "wrong", "metrics": {"a": 1.0}}])
        log([{"step": 1, "time": "wrong", "metrics": {"a": 1.0}}])
    assert len(messages) == 1
    assert messages[0].startswith(f"{tmp_path}: event files cannot be written: ")


def test_a_missing_package_is_an_error_if_event_files_are_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    check_installed(job_with(folder, False))
    with pytest.raises(ModuleNotFoundError, match="tensorboardX"):
        check_installed(job_with(folder, True))
