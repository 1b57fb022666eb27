from pathlib import Path

import pytest

from rayfuse.errors import ResourceError, SpecError, UnavailableError
from rayfuse.registry.mlflow_connection import (
    artifact_root,
    connect,
    database_path,
    resolve_tracking_uri,
)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_default_is_a_database_in_the_storage(tmp_path: Path) -> None:
    assert resolve_tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_tracking_uri(None, "/data/runs") == "sqlite:////data/runs/mlflow.db"
    assert resolve_tracking_uri(None, "file:///data/my%20runs") == "sqlite:////data/my runs/mlflow.db"


def test_the_environment_overrides_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert resolve_tracking_uri(None, "s3://bucket/runs") == "http://mlflow:5000"
    assert resolve_tracking_uri("https://other", "runs") == "https://other"


def test_a_path_is_a_database_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x")
    assert resolve_tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_tracking_uri("here.db") == f"sqlite:///{tmp_path}/here.db"
    assert resolve_tracking_uri("odd") == f"sqlite:///{tmp_path}/odd"
    assert resolve_tracking_uri("sqlite:///rel.db") == f"sqlite:///{tmp_path}/rel.db"


def test_remote_storage_needs_a_server() -> None:
    with pytest.raises(
        SpecError, match=r"s3://bucket/runs: MLflow's database cannot be on remote.*MLFLOW_TRACKING_URI"
    ):
        resolve_tracking_uri(None, "s3://bucket/runs")


def test_artifacts_are_next_to_the_database() -> None:
    assert artifact_root("sqlite:////a b/mlflow.db", "job") == "file:///a%20b/mlartifacts/job"
    assert artifact_root("http://mlflow:5000", "job") is None
    assert database_path("postgresql://u:p@host/db") is None


def test_a_command_that_only_reads_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no MLflow database at .*runs/mlflow\.db; train a job first"):
        connect(resolve_tracking_uri(), create=False)
    assert not (tmp_path / "runs").exists()


def test_another_file_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("shopping list " * 100)
    with pytest.raises(ResourceError, match=r"notes\.db: not a database"):
        connect(resolve_tracking_uri("notes.db"))
    assert (tmp_path / "notes.db").read_text().startswith("shopping list")


def test_uncreatable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file/runs/mlflow\.db: MLflow's database is not writable"):
        connect(resolve_tracking_uri(None, str(tmp_path / "file" / "runs")))


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "postgresql://me:secret@127.0.0.1:9/db"])
def test_an_unreachable_server_is_a_short_error_without_the_password(uri: str) -> None:
    with pytest.raises(UnavailableError, match=r"is not reachable \(connection refused\); start it") as error:
        connect(uri)
    assert "secret" not in str(error.value)
    assert len(str(error.value)) < 160


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"htp://mlflow: not a tracking URI; use http"):
        connect("htp://mlflow")
