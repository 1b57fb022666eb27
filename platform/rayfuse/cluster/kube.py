"""A thin client of the Kubernetes API server, with objects as JSON and its errors as Rayfuse's exceptions."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from lightkube import Client, KubeConfig
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import (
    GenericNamespacedResource,
    create_global_resource,
    create_namespaced_resource,
)
from lightkube.types import CascadeType, PatchType

from rayfuse.cluster.kube_errors import (
    AuthenticationError,
    Json,
    NoSuchResourceError,
    ServerUnavailableError,
    to_error,
)
from rayfuse.errors import UnavailableError

T = TypeVar("T")

_FIELD_MANAGER = "rayfuse"
_RAY_API_GROUP = "ray.io"
_KUEUE_API_GROUP = "kueue.x-k8s.io"

_RETRY_TIMEOUT_SECONDS = 300.0
_RETRY_INTERVAL_SECONDS = 1.0


def _resource(group: str, version: str, kind: str) -> type[GenericNamespacedResource]:
    return create_namespaced_resource(group, version, kind, f"{kind.lower()}s")


_RESOURCES = {
    "ConfigMap": _resource("", "v1", "ConfigMap"),
    "Pod": _resource("", "v1", "Pod"),
    "Event": _resource("", "v1", "Event"),
    "LocalQueue": _resource(_KUEUE_API_GROUP, "v1beta1", "LocalQueue"),
    "PersistentVolumeClaim": _resource("", "v1", "PersistentVolumeClaim"),
    "RayCluster": _resource(_RAY_API_GROUP, "v1", "RayCluster"),
    "RayJob": _resource(_RAY_API_GROUP, "v1", "RayJob"),
    "RayService": _resource(_RAY_API_GROUP, "v1", "RayService"),
    "Secret": _resource("", "v1", "Secret"),
    "ServiceAccount": _resource("", "v1", "ServiceAccount"),
    "Workload": _resource(_KUEUE_API_GROUP, "v1beta1", "Workload"),
}
_NAMESPACE = create_global_resource("", "v1", "Namespace", "namespaces")


class KubeClient:
    """Objects of one namespace of a cluster.

    Every method raises UnavailableError where the API server is unreachable or denies access, and SpecError where it
    rejects an object. Requests that change nothing, or the same when repeated, wait for a server that has answered
    before and restarts: until it answers and has the kind again, which its custom resources are not from the start.
    """

    def __init__(self, connect: Callable[[], Client], namespace: str | None = None) -> None:
        """Use the client that `connect` returns, and a new one when the server no longer takes its credentials."""
        self._connect = connect
        self._client = connect()
        self.namespace = namespace or self._client.config.namespace
        self._known_kinds: set[str] = set()

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "KubeClient":
        """Connect with the kubeconfig (KUBECONFIG, else ~/.kube/config), or in a pod with its service account."""
        return cls(lambda: _connect(context), namespace)

    def find(self, kind: str, name: str) -> Json | None:
        """Return an object; None where there is none of this name."""
        found = self.list(kind, fields={"metadata.name": name})
        return found[0] if found else None

    def exists(self, kind: str, name: str) -> bool:
        """Return whether there is an object of this name, which requires permission to `get` it, not to `list`."""
        resource = _RESOURCES[kind]
        return self._exists(kind, name, lambda: self._client.get(resource, name, namespace=self.namespace))

    def namespace_exists(self) -> bool:
        """Return whether the namespace exists."""
        return self._exists("Namespace", self.namespace, lambda: self._client.get(_NAMESPACE, self.namespace))

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None
    ) -> Sequence[Json]:
        """Return the objects of a kind with these labels and field values."""
        return self._request(kind, lambda: self._list(kind, labels or {}, fields or {}))

    def _request(self, kind: str, request: Callable[[], T]) -> T:
        """Return the result of a request that may be repeated."""
        deadline, has_renewed = time.monotonic() + _RETRY_TIMEOUT_SECONDS, False
        while True:
            try:
                found = request()
            except (ServerUnavailableError, NoSuchResourceError) as error:
                is_restarting = self._known_kinds and isinstance(error, ServerUnavailableError)
                if not (is_restarting or kind in self._known_kinds) or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_INTERVAL_SECONDS)
            except AuthenticationError:
                if has_renewed or not self._known_kinds:
                    raise
                self._client, has_renewed = self._connect(), True
            else:
                self._known_kinds.add(kind)
                return found

    def _exists(self, kind: str, name: str, get: Callable[[], object]) -> bool:
        def request() -> bool:
            with self._translate_errors(kind, name):
                try:
                    get()
                except ApiError as error:
                    if error.status.code == 404 and error.status.details and error.status.details.name:
                        return False
                    raise
            return True

        return self._request(kind, request)

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
        return self._request(kind, lambda: self._patch(kind, name, changes))

    def _patch(self, kind: str, name: str, changes: Json) -> Json:
        with self._translate_errors(kind, name):
            return dict(
                self._client.patch(
                    _RESOURCES[kind], name, changes, namespace=self.namespace, patch_type=PatchType.MERGE
                )
            )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and its dependents, if it exists."""
        self._request(kind, lambda: self._delete(kind, name))

    def _delete(self, kind: str, name: str) -> None:
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
            raise to_error(error, where, kind, name) from None
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailableError(
                f"{where} is unreachable: {reason}; check the cluster and KUBECONFIG"
            ) from None
        except ConfigError as error:  # an authentication plugin runs at the first request
            raise AuthenticationError(f"authentication to {where} failed: {error}") from None


def _connect(context: str | None) -> Client:
    try:
        config = KubeConfig.from_env().get(context)
        assert config is not None
        return Client(config, field_manager=_FIELD_MANAGER)
    except Exception as error:  # noqa: BLE001 - lightkube raises any type for an invalid kubeconfig
        reason = str(error) if isinstance(error, (ConfigError, OSError)) else "the kubeconfig is invalid"
        raise UnavailableError(
            f"Kubernetes: cannot connect to a cluster: {reason}; set KUBECONFIG, or choose another `context`"
        ) from None
