"""Translation of errors of MLflow, its databases and its HTTP client. All matching of error texts is in this module."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from rayfuse.errors import RayfuseError, ResourceError, SpecError, UnavailableError
from rayfuse.formatting import first_line

_DRIVERS = ("psycopg", "psycopg2", "pymysql", "MySQLdb", "pyodbc", "pymssql")
_LIBRARIES = ("mlflow", "sqlalchemy", "requests", "urllib3")
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]*@")

_NO_SPACE = ("No space left", "disk is full")
_UNSUPPORTED_URI = "unsupported URI"
_OLD_SCHEMA = "out-of-date database schema"
_NOT_A_DATABASE = "file is not a database"
_NOT_WRITABLE = ("unable to open database", "readonly database", "Permission denied")
_LOCKED = "database is locked"
_OPERATIONAL = "OperationalError"
_SERVER_FAILED = "API request"
_INVALID_HOST = "invalid host header"
_REASONS = {
    "Connection refused": "connection refused",
    "timed out": "timeout",
    "Timeout": "timeout",
    "NameResolutionError": "unknown host",
    "Name or service not known": "unknown host",
    "CERTIFICATE_VERIFY_FAILED": "its TLS certificate is not trusted",
    "RemoteDisconnected": "it closed the connection",
    "Connection reset": "it closed the connection",
    _LOCKED: "another process has locked it",
}

_AUTHENTICATION_CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_UNAVAILABLE_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "")
_MISSING_CODES = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_EXISTING_CODES = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")
_REJECTED_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class HttpResponse(Protocol):
    """The part of `requests.Response` that is read."""

    status_code: int
    """HTTP status."""
    headers: Mapping[str, str]
    """HTTP headers."""

    @property
    def text(self) -> str:
        """Body of the response."""
        ...


def is_missing(error: Exception) -> bool:
    """Return whether MLflow has no such run, model or version."""
    return _code(error) in _MISSING_CODES


def is_existing(error: Exception) -> bool:
    """Return whether MLflow has the model or experiment already."""
    return _code(error) in _EXISTING_CODES


def is_rejected(error: Exception) -> bool:
    """Return whether MLflow rejected the content of a request, so that a retry fails again."""
    return _code(error) in _REJECTED_CODES


def redact_uri(uri: str) -> str:
    """Return `uri` with its password replaced by `***`."""
    return _PASSWORD.sub(r"\1***@", uri)


def is_http(uri: str) -> bool:
    """Return whether a tracking URI is that of a server."""
    return uri.startswith(("http://", "https://"))


def reason(text: str) -> str:
    """Return the cause of a failed connection in a few words if it is a common one, else the first line of `text`."""
    return next((short for sign, short in _REASONS.items() if sign in text), None) or first_line(
        redact_uri(text)
    )


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise errors of MLflow and its stores as Rayfuse's own, with `uri` and a remedy."""
    try:
        yield
    except RayfuseError:
        raise
    except ModuleNotFoundError as error:
        if error.name not in _DRIVERS:
            raise  # the command line names the extra that has it
        raise ResourceError(
            f"{redact_uri(uri)} needs the database driver {error.name}; install it with pip"
        ) from None
    except Exception as error:
        known = translate_error(error, uri)
        if known is None:
            raise
        raise known from error


def translate_error(error: Exception, uri: str) -> RayfuseError | None:
    """Return Rayfuse's error for one of MLflow or its stores; None for any other, which is a bug."""
    text = " ".join(str(cause) for cause in _causes(error))
    if type(error).__module__ == "builtins" and isinstance(error, OSError):
        kind = UnavailableError if isinstance(error, (ConnectionError, TimeoutError)) else ResourceError
        return kind(f"MLflow at {redact_uri(uri)}: {error}")
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return None
    if any(sign in text for sign in _NO_SPACE):
        return ResourceError(
            f"MLflow at {redact_uri(uri)}: no space left on its disk; free some and try again"
        )
    if is_http(uri):
        return _translate_server_error(error, text, uri)
    return _translate_store_error(error, text, uri)


def translate_database_error(path: Path, error: Exception) -> RayfuseError:
    """Return Rayfuse's error for one that sqlite3 raised when it opened the database at `path`."""
    text = str(error)
    if _NOT_A_DATABASE in text:
        return ResourceError(f"{path}: not a database; use another path")
    if _LOCKED in text:
        return UnavailableError(f"{path}: another process has locked MLflow's database; try again")
    if any(sign in text for sign in (*_NO_SPACE, "database or disk is full")):
        return ResourceError(f"{path}: no space left for MLflow's database; free some and try again")
    return ResourceError(
        f"{path}: MLflow's database is not writable ({text}); check the permissions of its folder"
    )


def check_probe_response(uri: str, response: HttpResponse) -> None:
    """Raise UnavailableError if a response is not that of an MLflow server that accepts the request."""
    status = int(response.status_code)
    if status == 403 and _INVALID_HOST in response.text.lower():
        raise UnavailableError(
            f"MLflow at {redact_uri(uri)} rejects this host name (403); start it with --allowed-hosts "
            f"{urlsplit(uri).hostname}"
        )
    if status in (401, 403):
        raise _authentication_error(uri, status)
    if status != 200 or "json" not in response.headers.get("content-type", ""):
        raise UnavailableError(
            f"{redact_uri(uri)}: not an MLflow server (status {status}); check MLFLOW_TRACKING_URI"
        )


def _translate_store_error(error: Exception, text: str, uri: str) -> RayfuseError:
    shown = redact_uri(uri)
    if _UNSUPPORTED_URI in text:
        return SpecError(f"{shown}: not a tracking URI; use http(s)://…, sqlite:///… or a path")
    if _OLD_SCHEMA in text:
        return ResourceError(
            f"{shown}: the database is of another version of MLflow; back it up, then run `mlflow db upgrade {shown}`"
        )
    if _NOT_A_DATABASE in text:
        return ResourceError(f"{shown}: not a database; use another path")
    if any(sign in text for sign in _NOT_WRITABLE):
        return ResourceError(
            f"{shown}: MLflow's database is not writable; check the permissions of its folder"
        )
    if _OPERATIONAL in type(error).__name__ or _OPERATIONAL in text:
        return UnavailableError(
            f"MLflow's database at {shown} is not reachable ({reason(text)}); check that it is running"
        )
    return RayfuseError(f"MLflow at {shown}: {first_line(redact_uri(text))}")


def _translate_server_error(error: Exception, text: str, uri: str) -> RayfuseError:
    code = _code(error)
    if code in _AUTHENTICATION_CODES:
        return _authentication_error(uri, code)
    if code in _UNAVAILABLE_CODES or _SERVER_FAILED in text:
        return UnavailableError(
            f"MLflow at {redact_uri(uri)} is not reachable ({reason(text)}); check the server and its log"
        )
    return RayfuseError(f"MLflow at {redact_uri(uri)}: {first_line(redact_uri(text))}")


def _authentication_error(uri: str, why: object) -> UnavailableError:
    return UnavailableError(
        f"authentication to MLflow at {redact_uri(uri)} failed ({why}); set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
