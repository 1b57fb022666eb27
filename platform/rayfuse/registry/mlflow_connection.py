"""Connection to MLflow: tracking URI, short timeouts, and no output of MLflow's own."""

import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rayfuse.errors import SpecError, UnavailableError
from rayfuse.registry.mlflow_errors import (
    check_probe_response,
    is_http,
    reason,
    redact_uri,
    translate_database_error,
    translate_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORAGE = "runs"
"""Storage for commands that read no job, relative to the working folder."""

_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_PROBE_SECONDS = 5
_TRANSFER_SECONDS = "300"
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_ENV_DEFAULTS = {
    # MLflow's default of 7 retries of 120 s would block a command, or a thread at exit, for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    # A model must not contain the pyproject.toml of the current working folder.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def resolve_tracking_uri(explicit: str | None = None, storage: str | None = None) -> str:
    """Return the tracking URI: `explicit`, else MLFLOW_TRACKING_URI, else a database in the folder `storage`.

    A local path means a database file, or a folder with one in it. Raises SpecError if nothing else is given and
    `storage` is remote, as SQLite needs a local folder.
    """
    given = explicit or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return _local_as_sqlite(given)
    storage = storage or DEFAULT_STORAGE
    if _SCHEME.match(storage) and not storage.startswith("file:"):
        raise SpecError(
            f"{storage}: MLflow's database cannot be on remote storage; set MLFLOW_TRACKING_URI or `output.tracking_uri` "
            "to the URL of an MLflow server"
        )
    return _sqlite(_local_path(storage) / _DATABASE)


def connect(uri: str, create: bool = True) -> "MlflowClient":
    """Return a client of the MLflow at `uri`, after checking within seconds that it is up.

    Raises:
        UnavailableError: MLflow is down, authentication failed, or the database does not exist and `create` is false.
        ResourceError: The database cannot be written.
    """
    configure_mlflow()
    if is_http(uri):
        _probe_server(uri)
    elif uri.startswith("sqlite:"):
        _prepare_database(uri, create)
        # mlflow-skinny comes without sqlalchemy; without this line the error would be about unsupported URIs.
        import sqlalchemy  # noqa: F401
    else:
        _probe_database(uri)
    from mlflow import MlflowClient

    with translate_errors(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def configure_mlflow() -> None:
    """Turn off MLflow's banners, progress bars and migration logs, and set short timeouts. Settings of the user stay."""
    for name, value in _ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # MLflow configures its loggers when it is imported, which would undo the levels set here.
        os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also raises what it logs


def artifact_root(uri: str, experiment: str) -> str | None:
    """Return the URI of an experiment's artifacts, next to the database; None if a server decides."""
    database = database_path(uri)
    return None if database is None else (database.parent / _ARTIFACTS / experiment).as_uri()


def database_path(uri: str) -> Path | None:
    """Return the file of a SQLite tracking URI; None for any other URI."""
    match = re.match(r"^sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match[1]) if match else None


@contextmanager
def long_timeout() -> Iterator[None]:
    """Use a longer HTTP timeout during large transfers, unless the user has set one."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    chosen = os.environ.get(name) != _ENV_DEFAULTS[name]
    with nullcontext() if chosen else _env_override(name, _TRANSFER_SECONDS):
        yield


@contextmanager
def default_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLFLOW_TRACKING_URI: MLflow's database store resolves artifacts through the default URI."""
    with _env_override("MLFLOW_TRACKING_URI", uri):
        yield


@contextmanager
def _env_override(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _probe_server(uri: str) -> None:
    """Send a server one small request, with its credentials, a short timeout and no retries."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            max_retries=0,
            timeout=_PROBE_SECONDS,
            raise_on_status=False,
        )
    except Exception as error:  # noqa: BLE001 - proxies, DNS, TLS and auth plugins each have their own
        raise UnavailableError(
            f"MLflow at {redact_uri(uri)} is not reachable ({reason(str(error))}); start it, or set "
            "MLFLOW_TRACKING_URI to another server"
        ) from None
    check_probe_response(uri, response)


def _probe_database(uri: str) -> None:
    """Check that a database server listens; MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    port = _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is None or parts.hostname is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise UnavailableError(
            f"MLflow's database at {redact_uri(uri)} is not reachable ({reason(str(error))}); start it, or set "
            "MLFLOW_TRACKING_URI to another database"
        ) from None


def _prepare_database(uri: str, create: bool) -> None:
    """Create the database's folder and check that it is writable; MLflow itself would retry for a minute."""
    path = database_path(uri)
    if path is None:
        return
    if not create and not path.exists():
        raise UnavailableError(
            f"no MLflow database at {path}; train a job first, or set another with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS)) as database:
            database.execute("begin immediate")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise translate_database_error(path, error) from None


def _local_as_sqlite(given: str) -> str:
    database = database_path(given)
    if database is not None:
        return _sqlite(database)
    if _SCHEME.match(given) and not given.startswith("file:"):
        return given
    path = _local_path(given)
    is_file = path.is_file() or (path.suffix in (".db", ".sqlite", ".sqlite3") and not path.is_dir())
    return _sqlite(path if is_file else path / _DATABASE)


def _local_path(given: str) -> Path:
    return Path(unquote(urlsplit(given).path)) if given.startswith("file:") else Path(given).expanduser()


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"
