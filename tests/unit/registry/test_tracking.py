from pathlib import Path

import pytest

from rayfuse.errors import NotReachable, ResourceError, SpecError
from rayfuse.registry.tracking import _judge_probe, artifact_root, connect, database_path, shown, tracking_uri


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_anything_a_database_in_the_storage(tmp_path: Path) -> None:
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(None, "/data/runs") == "sqlite:////data/runs/mlflow.db"
    assert tracking_uri(None, "file:///data/my%20runs") == "sqlite:////data/my runs/mlflow.db"


def test_the_environment_comes_before_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(None, "s3://bucket/runs") == "http://mlflow:5000"
    assert tracking_uri("https://other", "runs") == "https://other"


def test_a_path_is_a_database_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x")
    assert tracking_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("here.db") == f"sqlite:///{tmp_path}/here.db"
    assert tracking_uri("odd") == f"sqlite:///{tmp_path}/odd"
    assert tracking_uri("sqlite:///rel.db") == f"sqlite:///{tmp_path}/rel.db"


def test_remote_storage_needs_a_server() -> None:
    with pytest.raises(SpecError, match=r"s3://bucket/runs is not a local folder.*MLFLOW_TRACKING_URI"):
        tracking_uri(None, "s3://bucket/runs")


def test_artifacts_lie_beside_the_database() -> None:
    assert artifact_root("sqlite:////a b/mlflow.db", "job") == "file:///a%20b/mlartifacts/job"
    assert artifact_root("http://mlflow:5000", "job") is None
    assert database_path("postgresql://u:p@host/db") is None


def test_passwords_are_not_shown() -> None:
    assert shown("https://me:secret@mlflow/x") == "https://me:***@mlflow/x"
    assert shown("https://mlflow:5000/@x") == "https://mlflow:5000/@x"


def test_a_command_that_only_reads_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(NotReachable, match=r"no MLflow database at .*runs/mlflow\.db; train a job first"):
        connect(tracking_uri(), create=False)
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("shopping list " * 100)
    with pytest.raises(ResourceError, match=r"notes\.db: the file is not a database"):
        connect(tracking_uri("notes.db"))
    assert (tmp_path / "notes.db").read_text().startswith("shopping list")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file/runs/mlflow\.db: MLflow's database cannot be written"):
        connect(tracking_uri(None, str(tmp_path / "file" / "runs")))


class Answer:
    def __init__(self, status: int, text: str = "{}", kind: str = "application/json") -> None:
        self.status_code, self.text, self.headers = status, text, {"content-type": kind}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(401), "does not let us in.*MLFLOW_TRACKING_USERNAME"),
        (Answer(403), "does not let us in.*MLFLOW_TRACKING_PASSWORD"),
        (Answer(403, "Invalid Host header - possible DNS rebinding attack"), "--allowed-hosts mlflow.svc"),
        (Answer(404), "not as MLflow does"),
        (Answer(200, "<html>", "text/html"), "not as MLflow does"),
    ],
)
def test_what_a_server_answers_is_explained(answer: Answer, message: str) -> None:
    with pytest.raises(NotReachable, match=message):
        _judge_probe("http://mlflow.svc:5000", answer)


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "postgresql://me:secret@127.0.0.1:9/db"])
def test_what_does_not_answer_is_said_in_a_few_words_and_without_the_password(uri: str) -> None:
    with pytest.raises(NotReachable, match=r"does not answer \(connection refused\); start it") as refused:
        connect(uri)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 150


def test_a_uri_that_nothing_knows() -> None:
    with pytest.raises(SpecError, match=r"htp://mlflow: no such kind of MLflow; write http"):
        connect("htp://mlflow")
