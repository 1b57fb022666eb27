"""Run folders on any store, and which of them is resumed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import tiny_jobs

from rayfuse.errors import ResourceError, UnavailableError
from rayfuse.training.runs import (
    RunFolder,
    RunStatus,
    acquire_run,
    check_storage,
    create_run,
    find_unfinished_run,
    fingerprint,
    heartbeat,
)

DIGESTS = {"train": "a", "validation": "b"}


@pytest.fixture(params=["folder", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        if fs.exists("/runs"):
            fs.rm("/runs", recursive=True)
        return "memory://runs"
    return str(tmp_path / "runs") if request.param == "folder" else (tmp_path / "runs").as_uri()


@pytest.fixture
def job(storage: str, tmp_path: Path) -> Any:
    return tiny_jobs.tiny_job(tmp_path, **{"output.storage": storage})


def write(url: str, text: str) -> None:
    fs, path = fsspec.url_to_fs(url)
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, text.encode())


def at(job: Any, name: str, **status: Any) -> RunFolder:
    """Create a run of the given name: names of runs started within a second do not sort by time."""
    run = RunFolder(f"{job.output.storage}/{job.name}/{name}", RunStatus(name, fingerprint(job, DIGESTS)))
    fs, path = fsspec.url_to_fs(run.url)
    fs.makedirs(path, exist_ok=True)
    run.save(**status)
    return run


def test_a_new_run_holds_its_job_and_status(job: Any) -> None:
    run = create_run(job, DIGESTS)
    assert run.url.startswith(f"{job.output.storage}/tiny/")
    assert json.loads(run.read("job.json") or "")["name"] == "tiny"
    assert json.loads(run.read("run.json") or "") == {
        "name": run.status.name,
        "fingerprint": fingerprint(job, DIGESTS),
        "status": "running",
        "mlflow_run_id": None,
        "version": None,
        "trial_seconds": 0.0,
        "driver": None,
        "last_heartbeat": 0.0,
    }
    assert run.read("absent.json") is None
    assert create_run(job, DIGESTS).url != run.url


def test_files_are_written_atomically(job: Any) -> None:
    run = create_run(job, DIGESTS)
    for text in ("first, and longer", "second é"):
        run.write("notes.txt", text)
        assert run.read("notes.txt") == text
    fs, path = fsspec.url_to_fs(run.url)
    assert not [name for name in fs.ls(path, detail=False) if name.endswith(".partial")]


def test_folders_are_uploaded(job: Any, tmp_path: Path) -> None:
    run = create_run(job, DIGESTS)
    (tmp_path / "model" / "encoders").mkdir(parents=True)
    (tmp_path / "model" / "rayfuse.json").write_text("{}")
    (tmp_path / "model" / "encoders" / "vocab.txt").write_text("a")
    for _ in range(2):  # again after a failed attempt
        run.upload(tmp_path / "model", "model")
    fs, path = fsspec.url_to_fs(run.path("model"))
    found = sorted(name.removeprefix(path) for name in fs.find(path))
    assert found == ["/encoders/vocab.txt", "/rayfuse.json"]


def test_the_newest_unfinished_run_is_found(job: Any) -> None:
    assert find_unfinished_run(job, DIGESTS) is None
    at(job, "20260101-000000-aaa", status="interrupted")
    newest = at(job, "20260102-000000-bbb", status="failed", mlflow_run_id="r7")
    found = find_unfinished_run(job, DIGESTS)
    assert found is not None
    assert found.url == newest.url
    assert found.status == newest.status
    assert find_unfinished_run(job, {**DIGESTS, "train": "other"}) is None


def test_no_run_before_a_finished_one_is_resumed(job: Any) -> None:
    at(job, "20260101-000000-aaa", status="interrupted")
    at(job, "20260102-000000-bbb", status="finished", version=1)
    assert find_unfinished_run(job, DIGESTS) is None


def test_runs_of_other_jobs_and_invalid_status_files_are_ignored(job: Any) -> None:
    kept = at(job, "20260101-000000-aaa", status="running")
    other = job.model_copy(update={"train": job.train.model_copy(update={"seed": 1})})
    at(other, "20260102-000000-bbb", status="running")
    folder = f"{job.output.storage}/{job.name}"
    for i, content in enumerate(['{"name": "2026', "[]", "null", '{"name": "x", "new_field": 1}', "\udc80"]):
        text = content.encode("utf-8", "surrogateescape").decode("latin-1")
        write(f"{folder}/20260103-00000{i}-ccc/run.json", text)
    write(f"{folder}/20260104-000000-ddd/run.json.partial", "{")
    found = find_unfinished_run(job, DIGESTS)
    assert found is not None
    assert found.url == kept.url


def test_the_fingerprint_covers_job_and_data(tmp_path: Path) -> None:
    def changed(**overrides: Any) -> str:
        return fingerprint(tiny_jobs.tiny_job(tmp_path, **overrides), DIGESTS)

    same = changed()
    assert (
        changed(**{"compute.workers": 4, "output.storage": "/elsewhere", "output.registered_model": "other"})
        == same
    )
    for key, value in (
        ("train.seed", 1),
        ("train.epochs", 9),
        ("align.dim", 32),
        ("inputs.image.optional", False),
    ):
        assert changed(**{key: value}) != same, key
    job = tiny_jobs.tiny_job(tmp_path)
    assert fingerprint(job, {**DIGESTS, "test": "c"}) != same
    assert fingerprint(job, dict(reversed(DIGESTS.items()))) == same


def test_a_storage_that_works(storage: str) -> None:
    for _ in range(2):
        check_storage(storage)
    fs, path = fsspec.url_to_fs(storage)
    assert fs.ls(path, detail=False) == []


def test_a_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match="output.storage: .*/runs: cannot be written: FileExistsError"):
        check_storage(str(tmp_path / "runs"))
    with pytest.raises(ResourceError, match="cannot be written: NotADirectoryError"):
        check_storage(str(tmp_path / "runs" / "below"))


def test_a_full_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    with pytest.raises(
        ResourceError, match="2 MB free is below the minimum of 50 MB; free some space or choose another"
    ):
        check_storage(str(tmp_path))


def test_a_storage_that_fills_up(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    run = create_run(job, DIGESTS)
    shutil.rmtree(run.url)
    with pytest.raises(ResourceError, match="output.storage: .*: cannot be written: FileNotFoundError"):
        run.save(status="failed")


def test_a_storage_that_does_not_respond() -> None:
    for url in ("http://127.0.0.1:9/runs", "gopher://host/runs"):
        with pytest.raises(UnavailableError, match=f"output.storage: {url}: cannot be written"):
            check_storage(url)


def run_held_by(job: Any, host: str, process: int, last_heartbeat: float) -> RunFolder:
    run = create_run(job, DIGESTS)
    run.save(driver=(host, process), last_heartbeat=last_heartbeat)
    found = find_unfinished_run(job, DIGESTS)
    assert found is not None
    return found


def test_a_run_that_another_process_trains_is_not_acquired(job: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        run = run_held_by(job, socket.gethostname(), other.pid, time.time() + 60)
        with pytest.raises(
            ResourceError, match=f"trained by process {other.pid} of this machine.*--no-resume"
        ):
            acquire_run(run, print)
        other.kill()
    acquire_run(run, print)


def test_a_reused_process_id_does_not_hold_a_run(job: Any) -> None:
    acquire_run(run_held_by(job, socket.gethostname(), 1, 1.0), print)
    acquire_run(run_held_by(job, socket.gethostname(), os.getpid(), time.time() + 60), print)


def test_waits_for_a_driver_on_another_machine(job: Any) -> None:
    run = run_held_by(job, "elsewhere", 7, time.time() - 30)
    waited: list[float] = []
    messages: list[str] = []
    acquire_run(run, messages.append, waited.append)
    assert waited == [pytest.approx(60, abs=2)]
    assert "elsewhere trained" in messages[0]

    def heartbeat(seconds: float) -> None:
        RunFolder(run.url, RunStatus(**json.loads(run.read("run.json") or ""))).save(
            last_heartbeat=time.time()
        )

    with pytest.raises(ResourceError, match="trained by process 7 of elsewhere"):
        acquire_run(run, print, heartbeat)
    run.save(last_heartbeat=time.time() - 3600)
    acquire_run(run, print, heartbeat)


def test_a_heartbeat_does_not_end_a_run_whose_storage_is_away(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "away"), RunStatus("run", "fingerprint"))
    heartbeat(run)
    assert run.status.last_heartbeat > 0
    with pytest.raises(ResourceError, match="cannot be written"):
        run.save()


def test_heartbeats_are_written_at_intervals(job: Any) -> None:
    run = create_run(job, DIGESTS)
    heartbeat(run)
    first = run.status.last_heartbeat
    heartbeat(run)
    assert run.status.last_heartbeat == first
    assert run.status.driver == (socket.gethostname(), os.getpid())
