"""Translation of real errors of MLflow, its client and its databases."""

import io
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from rayfuse.errors import RayfuseError, ResourceError, SpecError, UnavailableError
from rayfuse.registry.mlflow_connection import database_path
from rayfuse.registry.mlflow_errors import (
    check_probe_response,
    is_existing,
    is_missing,
    is_rejected,
    redact_uri,
    translate_database_error,
    translate_error,
)

SERVER = "http://mlflow.svc:5000"


def raised_by(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


@pytest.fixture
def database(client: MlflowClient, tmp_path: Path) -> str:
    """Return the URI of a copy of the shared database, as MLflow needs a second to create one."""
    shared = database_path(client.tracking_uri)
    assert shared is not None
    return f"sqlite:///{shutil.copy(shared, tmp_path / 'mlflow.db')}"


def execute(database: str, statement: str) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection:
        connection.execute(statement)
        connection.commit()


def translated(uri: str) -> RayfuseError | None:
    error = raised_by(lambda: MlflowClient(uri).search_experiments())
    return translate_error(error, uri)


def test_passwords_are_redacted() -> None:
    assert redact_uri("https://me:secret@mlflow/x") == "https://me:***@mlflow/x"
    assert redact_uri("https://mlflow:5000/@x") == "https://mlflow:5000/@x"


def test_error_codes(client: MlflowClient) -> None:
    assert is_missing(raised_by(lambda: client.get_run("0" * 32)))
    assert is_missing(raised_by(lambda: client.get_registered_model("missing")))
    assert is_missing(raised_by(lambda: client.get_model_version("missing", "1")))
    client.create_registered_model("existing")
    assert is_existing(raised_by(lambda: client.create_registered_model("existing")))
    run_id = client.create_run(client.create_experiment("rejected")).info.run_id
    assert is_rejected(raised_by(lambda: client.log_metric(run_id, "bad name!?\n", 1.0)))


def test_a_database_of_another_version(database: str) -> None:
    execute(database, "update alembic_version set version_num = '000000000000'")
    uri = f"{database}?other"  # not the engine that MLflow has cached
    assert isinstance(translated(uri), ResourceError)


def test_an_unsupported_uri() -> None:
    error = translated("htp://mlflow")
    assert isinstance(error, SpecError)
    assert "htp://mlflow: not a tracking URI" in str(error)


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("shopping list " * 100)
    error = raised_by(lambda: sqlite3.connect(path).execute("select * from runs"))
    assert "not a database" in str(translate_database_error(path, error))


def test_a_locked_database(database: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("begin exclusive")
        error = raised_by(lambda: sqlite3.connect(path, timeout=0).execute("begin immediate"))
    found = translate_database_error(path, error)
    assert isinstance(found, UnavailableError)
    assert "another process has locked" in str(found)


def test_a_full_database(tmp_path: Path) -> None:
    path = tmp_path / "full.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma max_page_count = 2")
        connection.execute("create table numbers (value)")
        error = raised_by(
            lambda: connection.executemany("insert into numbers values (?)", [("x" * 1000,)] * 20)
        )
    assert "no space left" in str(translate_database_error(path, error))


def test_a_read_only_database(database: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    error = raised_by(lambda: sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("create table t (x)"))
    assert "is not writable" in str(translate_database_error(path, error))


def test_unreachable_server() -> None:
    error = raised_by(lambda: requests.get("http://127.0.0.1:9", timeout=5))
    found = translate_error(error, SERVER)
    assert isinstance(found, UnavailableError)
    assert (
        str(found)
        == f"MLflow at {SERVER} is not reachable (connection refused); check the server and its log"
    )


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_a_request_without_permission(code: str) -> None:
    error = translate_error(RestException({"error_code": code, "message": "no"}), SERVER)
    assert isinstance(error, UnavailableError)
    assert "authentication to MLflow" in str(error)
    assert "MLFLOW_TRACKING_TOKEN" in str(error)


def test_another_error_of_mlflow_has_its_first_line() -> None:
    error = translate_error(MlflowException.invalid_parameter_value("bad value\nmore"), SERVER)
    assert str(error) == f"MLflow at {SERVER}: bad value"


def test_an_error_of_other_code_is_not_translated() -> None:
    assert translate_error(ValueError("a bug"), SERVER) is None


def response(status: int, text: str = "{}", kind: str = "application/json") -> requests.Response:
    found = requests.Response()
    found.status_code, found.encoding = status, "utf-8"
    found.raw = io.BytesIO(text.encode())
    found.headers["content-type"] = kind
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (response(401), "authentication to MLflow .* failed.*MLFLOW_TRACKING_USERNAME"),
        (response(403), "authentication to MLflow .* failed.*MLFLOW_TRACKING_PASSWORD"),
        (response(403, "Invalid Host header - possible DNS rebinding attack"), "--allowed-hosts mlflow.svc"),
        (response(404), "not an MLflow server"),
        (response(200, "<html>", "text/html"), "not an MLflow server"),
    ],
)
def test_responses_of_a_server(found: requests.Response, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        check_probe_response(SERVER, found)
