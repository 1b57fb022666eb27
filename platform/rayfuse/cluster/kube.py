"""A thin client of the Kubernetes API server, with objects as JSON and its errors as Rayfuse's exceptions."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
from lightkube import Client, KubeConfig
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.types import CascadeType, PatchType

from rayfuse.errors import RayfuseError, SpecError, UnavailableError

Json = dict[str, Any]

_FIELD_MANAGER = "rayfuse"
_RAY_API_GROUP = "ray.io"


_RETRY_TIMEOUT_SECONDS = 60.0
_RETRY_INTERVAL_SECONDS = 1.0


class _ServerUnavailableError(UnavailableError):
    """An API server that is unreachable or temporarily unavailable."""


def _resource(group: str, version: str, kind: str) -> type[GenericNamespacedResource]:
    return create_namespaced_resource(group, version, kind, f"{kind.lower()}s")


_RESOURCES = {
    "ConfigMap": _resource("", "v1", "ConfigMap"),
    "Pod": _resource("", "v1", "Pod"),
    "RayJob": _resource(_RAY_API_GROUP, "v1", "RayJob"),
    "RayService": _resource(_RAY_API_GROUP, "v1", "RayService"),
    "Workload": _resource("kueue.x-k8s.io", "v1beta1", "Workload"),
}


class KubeClient:
    """Objects of one namespace of a cluster.

    Every method raises UnavailableError where the API server is unreachable or denies access, and SpecError where it
    rejects an object.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self._has_connected = False

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "KubeClient":
        """Connect with the kubeconfig (KUBECONFIG, else ~/.kube/config), or in a pod with its service account."""
        try:
            config = KubeConfig.from_env().get(context)
            assert config is not None
            client = Client(config, field_manager=_FIELD_MANAGER)
        except Exception as error:  # noqa: BLE001 - lightkube raises any type for an invalid kubeconfig
            reason = str(error) if isinstance(error, (ConfigError, OSError)) else "the kubeconfig is invalid"
            raise UnavailableError(
                f"Kubernetes: cannot connect to a cluster: {reason}; set KUBECONFIG, or choose another `context`"
            ) from None
        return cls(client, namespace or config.namespace)

    def find(self, kind: str, name: str) -> Json | None:
        """Return an object; None where there is none of this name."""
        found = self.list(kind, fields={"metadata.name": name})
        return found[0] if found else None

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None
    ) -> Sequence[Json]:
        """Return the objects of a kind with these labels and field values.

        Retries for a minute where the server was reachable before, so that waiting for a job survives its restart.
        """
        deadline = time.monotonic() + (_RETRY_TIMEOUT_SECONDS if self._has_connected else 0)
        while True:
            try:
                found = self._list(kind, labels or {}, fields or {})
            except _ServerUnavailableError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_INTERVAL_SECONDS)
            else:
                self._has_connected = True
                return found

    def _list(self, kind: str, labels: Mapping[str, str], fields: Mapping[str, str]) -> Sequence[Json]:
        resource = _RESOURCES[kind]
        with self._translate_errors(kind):
            found = self._client.list(
                resource, namespace=self.namespace, labels=dict(labels), fields=dict(fields)
            )
            version = resource._api_info.resource.api_version
            # Items of a list have neither field.
            return [{**item, "apiVersion": version, "kind": kind} for item in found]

    def create(self, manifest: Json, dry_run: bool = False) -> Json:
        """Create an object and return it; with `dry_run` the server validates it without storing it."""
        kind = manifest["kind"]
        with self._translate_errors(kind, manifest["metadata"]["name"]):
            return dict(self._client.create(_RESOURCES[kind](**manifest), dry_run=dry_run))

    def apply(self, manifest: Json, dry_run: bool = False) -> Json:
        """Create or update an object by server-side apply and return it."""
        kind = manifest["kind"]
        with self._translate_errors(kind, manifest["metadata"]["name"]):
            return dict(self._client.apply(_RESOURCES[kind](**manifest), dry_run=dry_run))

    def patch(self, kind: str, name: str, changes: Json) -> Json:
        """Change fields of an object by a merge patch and return it."""
        with self._translate_errors(kind, name):
            return dict(
                self._client.patch(
                    _RESOURCES[kind], name, changes, namespace=self.namespace, patch_type=PatchType.MERGE
                )
            )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and its dependents, if it exists."""
        with self._translate_errors(kind, name):
            try:
                self._client.delete(
                    _RESOURCES[kind], name, namespace=self.namespace, cascade=CascadeType.BACKGROUND
                )
            except ApiError as error:
                if error.response.status_code != 404:
                    raise

    def log(self, pod: str, container: str, follow: bool) -> Iterator[str]:
        """Yield the lines of a container's log; with `follow` until the container or the connection ends."""
        with self._translate_errors("Pod", pod):
            lines = self._client.log(
                pod, namespace=self.namespace, container=container, follow=follow, newlines=False
            )
            yield from lines

    @contextmanager
    def _translate_errors(self, kind: str, name: str = "") -> Iterator[None]:

        config = self._client.config
        where = f"Kubernetes at {config.cluster.server} (context {config.context_name})"
        try:
            yield
        except httpx2.HTTPStatusError as error:
            raise _to_error(error, where, kind, name) from None
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _ServerUnavailableError(
                f"{where} is unreachable: {reason}; check the cluster and KUBECONFIG"
            ) from None
        except ConfigError as error:  # an authentication plugin runs at the first request
            raise UnavailableError(f"authentication to {where} failed: {error}") from None


def _to_error(error: httpx2.HTTPStatusError, where: str, kind: str, name: str) -> RayfuseError:
    code, status = error.response.status_code, _status(error.response)
    message, details = status.get("message") or error.response.reason_phrase, status.get("details") or {}
    what = f"{kind} {name}".rstrip()
    if code == 401:
        return UnavailableError(f"authentication to {where} failed: {message}; log in again")
    if code == 403:
        return UnavailableError(f"{where} denied permission: {message}")
    if code == 404 and not details.get("name"):
        remedy = (
            "install KubeRay 1.7 or newer (docs.ray.io)" if kind.startswith("Ray") else "install it first"
        )
        return UnavailableError(f"{where} has no resource {kind}; {remedy}")
    if code == 404 and details.get("kind") == "namespaces":
        return SpecError(f"namespace: {message} on {where}; create it, or use another")
    if code == 404:
        return SpecError(f"{what}: {message}")
    if code == 409 and status.get("reason") == "AlreadyExists":
        return SpecError(
            f"{what}: already exists; choose another name, or `kubectl delete {kind.lower()} {name}`"
        )
    if code == 409:
        return SpecError(f"{what}: conflict with a concurrent change: {message}; try again")
    if code in (400, 413, 422):
        return SpecError("\n".join(f"{what}: {line}" for line in _causes(status) or [message]))
    return _ServerUnavailableError(f"{where} is unavailable: {code} {message}")


def _status(response: httpx2.Response) -> Json:
    """Return the API server's Status object; {} where another server has responded."""
    try:
        found = json.loads(response.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _causes(status: Json) -> list[str]:
    """Return a line for each invalid field."""
    causes = (status.get("details") or {}).get("causes") or []
    return [
        f"{cause['field']}: {cause['message']}" for cause in causes if cause.get("field", "<nil>") != "<nil>"
    ]
