"""Which MLflow to talk to, and how: quietly, with short waits, and with errors that say what to do."""

import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rayfuse.errors import NotReachable, RayfuseError, ResourceError, SpecError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORAGE = "runs"
"""Storage of commands that read no job: a folder below the working folder."""

_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = ("psycopg", "psycopg2", "pymysql", "MySQLdb", "pyodbc", "pymssql")
_REASONS = {
    "Connection refused": "connection refused",
    "timed out": "no answer in time",
    "Timeout": "no answer in time",
    "NameResolutionError": "its host name has no address",
    "Name or service not known": "its host name has no address",
    "CERTIFICATE_VERIFY_FAILED": "its TLS certificate is not trusted",
    "RemoteDisconnected": "it closed the connection",
    "Connection reset": "it closed the connection",
    "database is locked": "another process holds it locked",
}
_PROBE_SECONDS = 5
_TRANSFER_SECONDS = "300"
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]*@")

_SETTINGS = {
    # MLflow's own 7 retries of 120 s would hold a command, or a thread at exit, for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    # A model folder must not take along the pyproject.toml of whichever folder one stands in.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(explicit: str | None = None, storage: str | None = None) -> str:
    """The MLflow to use: `explicit`, else MLFLOW_TRACKING_URI, else a database in the folder `storage`.

    A local path means a database file, or a folder with one in it. Raises SpecError where `storage` is not on
    this machine, because only a server can keep a database for such a place.
    """
    given = explicit or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return _local_as_sqlite(given)
    storage = storage or DEFAULT_STORAGE
    if _SCHEME.match(storage) and not storage.startswith("file:"):
        raise SpecError(
            f"{storage} is not a local folder, so MLflow needs a server: set MLFLOW_TRACKING_URI or `output.tracking`"
        )
    return _sqlite(_local_path(storage) / _DATABASE)


def shown(uri: str) -> str:
    """`uri` without its password."""
    return _PASSWORD.sub(r"\1***@", uri)


def connect(uri: str, create: bool = True) -> "MlflowClient":
    """A client of the MLflow at `uri`, after making sure within seconds that it answers.

    Raises NotReachable where it does not answer or refuses us, also where a database does not exist and `create`
    is false; ResourceError where a database cannot be written.
    """
    quiet()
    if _is_http(uri):
        _probe_server(uri)
    elif uri.startswith("sqlite:"):
        _prepare_database(uri, create)
        # mlflow-skinny has no database; without this line it speaks of unsupported URIs.
        import sqlalchemy  # noqa: F401
    else:
        _probe_database(uri)
    from mlflow import MlflowClient

    with explained(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def quiet() -> None:
    """Keep MLflow's banners, progress bars and migration logs from users. Their own settings stay."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # MLflow sets up its loggers when it is imported, which would undo the levels set here.
        os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where an experiment's artifacts go: beside the database; None where a server decides."""
    database = database_path(uri)
    return None if database is None else (database.parent / _ARTIFACTS / experiment).as_uri()


def database_path(uri: str) -> Path | None:
    """The file of a SQLite database; None for any other MLflow."""
    match = re.match(r"^sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match[1]) if match else None


@contextmanager
def patient() -> Iterator[None]:
    """Wait longer for answers while large files travel, unless the user has chosen how long."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    chosen = os.environ.get(name) != _SETTINGS[name]
    with nullcontext() if chosen else _variable(name, _TRANSFER_SECONDS):
        yield


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make `uri` the default of this process: MLflow's database store asks for it where it should know better."""
    with _variable("MLFLOW_TRACKING_URI", uri):
        yield


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow and its stores raise into our errors, naming `uri` and the remedy."""
    try:
        yield
    except RayfuseError:
        raise
    except ModuleNotFoundError as error:
        if error.name not in _DRIVERS:
            raise  # the command line knows which extra brings it
        raise ResourceError(
            f"{shown(uri)} needs the database driver {error.name}; install it with pip"
        ) from None
    except Exception as error:
        known = explain(error, uri)
        if known is None:
            raise
        raise known from error


def explain(error: Exception, uri: str) -> RayfuseError | None:
    """Our error for one of MLflow's; None for what looks like a bug."""
    text = " ".join(str(cause) for cause in _causes(error))
    if type(error).__module__ == "builtins" and isinstance(error, OSError):
        kind = NotReachable if isinstance(error, (ConnectionError, TimeoutError)) else ResourceError
        return kind(f"MLflow at {shown(uri)}: {error}")
    if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "requests", "urllib3"):
        return None
    if "No space left" in text or "disk is full" in text:
        return ResourceError(f"MLflow at {shown(uri)}: no space left; make room and run it again")
    if _is_http(uri):
        return _explain_server(error, text, uri)
    if "unsupported URI" in text:
        return SpecError(f"{shown(uri)}: no such kind of MLflow; write http(s)://…, sqlite:///… or a path")
    if "out-of-date database schema" in text:
        return ResourceError(
            f"{shown(uri)}: the database was made by another version of MLflow; back it up, then run "
            f"`mlflow db upgrade {shown(uri)}`"
        )
    if "file is not a database" in text:
        return ResourceError(f"{shown(uri)}: the file is not a database; give another path")
    if "unable to open database" in text or "readonly database" in text or "Permission denied" in text:
        return ResourceError(
            f"{shown(uri)}: MLflow's database cannot be written; check the folder's permissions"
        )
    if "OperationalError" in type(error).__name__ or "OperationalError" in text:
        return NotReachable(f"MLflow's database at {shown(uri)} does not answer ({_reason(text)})")
    return RayfuseError(f"MLflow at {shown(uri)}: {_first_line(text)}")


def _explain_server(error: Exception, text: str, uri: str) -> RayfuseError:
    code = getattr(error, "error_code", "")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return _refused(uri, code)
    if code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "") or "API request" in text:
        return NotReachable(f"MLflow at {shown(uri)} does not answer ({_reason(text)})")
    return RayfuseError(f"MLflow at {shown(uri)}: {_first_line(text)}")


def _refused(uri: str, why: object) -> NotReachable:
    return NotReachable(
        f"MLflow at {shown(uri)} does not let us in ({why}); set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def _probe_server(uri: str) -> None:
    """Ask a server one small question, with its credentials and without patience."""
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
        raise NotReachable(
            f"MLflow at {shown(uri)} does not answer ({_reason(str(error))}); start it, or set "
            "MLFLOW_TRACKING_URI to another"
        ) from None
    _judge_probe(uri, response)


def _probe_database(uri: str) -> None:
    """See that a database server listens; MLflow itself would try for minutes."""
    parts = urlsplit(uri)
    port = _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is None or parts.hostname is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise NotReachable(
            f"MLflow's database at {shown(uri)} does not answer ({_reason(str(error))}); start it, or set "
            "MLFLOW_TRACKING_URI to another"
        ) from None


def _judge_probe(uri: str, response: Any) -> None:
    status = int(response.status_code)
    if status == 403 and "host" in response.text.lower():
        raise NotReachable(
            f"MLflow at {shown(uri)} refuses this host name (403); start it with --allowed-hosts {urlsplit(uri).hostname}"
        )
    if status in (401, 403):
        raise _refused(uri, status)
    if status != 200 or "json" not in response.headers.get("content-type", ""):
        raise NotReachable(
            f"{shown(uri)} answers, but not as MLflow does (status {status}); check MLFLOW_TRACKING_URI"
        )


def _prepare_database(uri: str, create: bool) -> None:
    """Make the database's folder and see that it can be written; MLflow itself would retry for a minute."""
    path = database_path(uri)
    if path is None:
        return
    if not create and not path.exists():
        raise NotReachable(
            f"no MLflow database at {path}; train a job first, or name another with --tracking or MLFLOW_TRACKING_URI"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_PROBE_SECONDS)) as database:
            database.execute("begin immediate")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise _explain_database(path, error) from None


def _explain_database(path: Path, error: Exception) -> RayfuseError:
    text = str(error)
    if "not a database" in text:
        return ResourceError(f"{path}: the file is not a database; give another path")
    if "locked" in text:
        return NotReachable(f"{path}: another process holds MLflow's database locked; try again")
    if "full" in text or "No space" in text:
        return ResourceError(f"{path}: no space left for MLflow's database; make room and run it again")
    return ResourceError(
        f"{path}: MLflow's database cannot be written: {text}; check the folder's permissions"
    )


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


def _is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _reason(text: str) -> str:
    """What is behind the many lines of a connection that failed, in a few words where it is a common case."""
    return next((short for sign, short in _REASONS.items() if sign in text), None) or _first_line(text)


def _first_line(text: str) -> str:
    line = (shown(text).strip().splitlines() or [""])[0]
    return line if len(line) <= 300 else f"{line[:297]}…"
