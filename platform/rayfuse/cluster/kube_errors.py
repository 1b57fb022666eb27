"""Errors of the Kubernetes API server as Rayfuse's exceptions."""

import json
from collections.abc import Sequence
from typing import Any

import httpx2

from rayfuse.errors import RayfuseError, SpecError, UnavailableError

Json = dict[str, Any]


class ServerUnavailableError(UnavailableError):
    """An API server that is unreachable or temporarily unavailable."""


class AuthenticationError(UnavailableError):
    """Credentials that the API server does not accept, such as a token that has expired."""


class ForbiddenError(UnavailableError):
    """A request that the API server denies."""


class NoSuchResourceError(UnavailableError):
    """A kind of object that the API server does not know: its operator is not installed, or the server is starting."""


class RejectedObjectError(SpecError):
    """An object that the API server rejects, with a cause for each invalid field."""

    def __init__(self, message: str, causes: Sequence[tuple[str, str]]) -> None:
        super().__init__(message, causes)
        self.message = message
        self.causes = causes
        """Paths of fields in the object, as in `spec.backoffLimit`, and what is wrong with them."""

    def __str__(self) -> str:
        return self.message


def to_error(error: httpx2.HTTPStatusError, where: str, kind: str, name: str) -> RayfuseError:
    """Return the exception for a response of the server at `where` to a request about an object."""
    code, status = error.response.status_code, _status(error.response)
    message, details = status.get("message") or error.response.reason_phrase, status.get("details") or {}
    what = f"{kind} {name}".rstrip()
    if code == 401:
        return AuthenticationError(f"authentication to {where} failed: {message}; log in again")
    if code == 403:
        return ForbiddenError(f"{where} denied permission: {message}")
    if code == 404:
        return _not_found(where, kind, what, message, details)
    if code == 409 and status.get("reason") == "AlreadyExists":
        return SpecError(
            f"{what}: already exists; choose another name, or `kubectl delete {kind.lower()} {name}`"
        )
    if code == 409:
        return SpecError(f"{what}: conflict with a concurrent change: {message}; try again")
    if code in (400, 413, 422):
        causes = _causes(details)
        lines = [f"{field}: {reason}" for field, reason in causes] or [message]
        return RejectedObjectError("\n".join(f"{what}: {line}" for line in lines), causes)
    return ServerUnavailableError(f"{where} is unavailable: {code} {message}")


def _not_found(where: str, kind: str, what: str, message: str, details: Json) -> RayfuseError:
    if not details.get("name"):
        remedy = (
            "install KubeRay 1.7 or newer (docs.ray.io)" if kind.startswith("Ray") else "install it first"
        )
        return NoSuchResourceError(f"{where} has no resource {kind}; {remedy}")
    if details.get("kind") == "namespaces":
        return SpecError(f"namespace: {message} on {where}; create it, or use another")
    return SpecError(f"{what}: {message}")


def _status(response: httpx2.Response) -> Json:
    """Return the API server's Status object; {} where another server has responded."""
    try:
        found = json.loads(response.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _causes(details: Json) -> list[tuple[str, str]]:
    """Return each invalid field with the reason."""
    causes = details.get("causes") or []
    return [(cause["field"], cause["message"]) for cause in causes if cause.get("field", "<nil>") != "<nil>"]
