"""A thin client of a Kubernetes API server: objects are plain JSON, and its refusals become our errors."""

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

from rayfuse.errors import NotReachable, RayfuseError, SpecError

Json = dict[str, Any]

_MANAGER = "rayfuse"
_OPERATOR = "ray.io"


_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 1.0


class _Unanswered(NotReachable):
    """The API server is not there, or cannot do its work now."""


def _resource(group: str, version: str, kind: str) -> type[GenericNamespacedResource]:
    return create_namespaced_resource(group, version, kind, f"{kind.lower()}s")


_RESOURCES = {
    "ConfigMap": _resource("", "v1", "ConfigMap"),
    "Pod": _resource("", "v1", "Pod"),
    "RayJob": _resource(_OPERATOR, "v1", "RayJob"),
    "RayService": _resource(_OPERATOR, "v1", "RayService"),
    "Workload": _resource("kueue.x-k8s.io", "v1beta1", "Workload"),
}


class Kube:
    """One namespace of a cluster.

    Every method raises NotReachable where the API server does not answer or does not let us in, and SpecError where
    it finds an object wrong.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self.namespace = namespace
        self._has_answered = False

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "Kube":
        """By the kubeconfig (KUBECONFIG, else ~/.kube/config), or in a pod by its service account."""
        try:
            config = KubeConfig.from_env().get(context)
            assert config is not None
            client = Client(config, field_manager=_MANAGER)
        except Exception as error:  # noqa: BLE001 - lightkube reads the file trustingly, and breaks where it may
            reason = str(error) if isinstance(error, (ConfigError, OSError)) else "the kubeconfig is broken"
            raise NotReachable(
                f"Kubernetes: no way to a cluster: {reason}; set KUBECONFIG, or choose another `context`"
            ) from None
        return cls(client, namespace or config.namespace)

    def find(self, kind: str, name: str) -> Json | None:
        """An object; None where there is none of this name."""
        found = self.list(kind, fields={"metadata.name": name})
        return found[0] if found else None

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None
    ) -> Sequence[Json]:
        """All objects of a kind that have these labels and values.

        A server that has answered before may stay away for a minute: whoever waits for a job waits for days.
        """
        deadline = time.monotonic() + (_PATIENCE_SECONDS if self._has_answered else 0)
        while True:
            try:
                found = self._list(kind, labels or {}, fields or {})
            except _Unanswered:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                self._has_answered = True
                return found

    def _list(self, kind: str, labels: Mapping[str, str], fields: Mapping[str, str]) -> Sequence[Json]:
        resource = _RESOURCES[kind]
        with self._explained(kind):
            found = self._client.list(
                resource, namespace=self.namespace, labels=dict(labels), fields=dict(fields)
            )
            version = resource._api_info.resource.api_version
            return [
                {**item, "apiVersion": version, "kind": kind} for item in found
            ]  # lists leave the two out

    def create(self, manifest: Json, dry_run: bool = False) -> Json:
        """Create an object, or with `dry_run` ask what would come of it."""
        kind = manifest["kind"]
        with self._explained(kind, manifest["metadata"]["name"]):
            return dict(self._client.create(_RESOURCES[kind](**manifest), dry_run=dry_run))

    def apply(self, manifest: Json, dry_run: bool = False) -> Json:
        """Create an object, or make it what the manifest says; what others have set in it stays (server-side apply)."""
        kind = manifest["kind"]
        with self._explained(kind, manifest["metadata"]["name"]):
            return dict(self._client.apply(_RESOURCES[kind](**manifest), dry_run=dry_run))

    def patch(self, kind: str, name: str, changes: Json) -> Json:
        """Change some fields of an object (merge patch)."""
        with self._explained(kind, name):
            return dict(
                self._client.patch(
                    _RESOURCES[kind], name, changes, namespace=self.namespace, patch_type=PatchType.MERGE
                )
            )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, and what belongs to it; fine where it is gone already."""
        with self._explained(kind, name):
            try:
                self._client.delete(
                    _RESOURCES[kind], name, namespace=self.namespace, cascade=CascadeType.BACKGROUND
                )
            except ApiError as error:
                if error.response.status_code != 404:
                    raise

    def log(self, pod: str, container: str, follow: bool) -> Iterator[str]:
        """The log of a container, line by line; with `follow` until the container ends or the connection does."""
        with self._explained("Pod", pod):
            lines = self._client.log(
                pod, namespace=self.namespace, container=container, follow=follow, newlines=False
            )
            yield from lines

    @contextmanager
    def _explained(self, kind: str, name: str = "") -> Iterator[None]:
        """What the API server or the way to it reports, as an error of ours."""
        config = self._client.config
        where = f"Kubernetes at {config.cluster.server} (context {config.context_name})"
        try:
            yield
        except httpx2.HTTPStatusError as error:
            raise _explain(error, where, kind, name) from None
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _Unanswered(
                f"{where} does not answer: {reason}; is it up, and KUBECONFIG the right one?"
            ) from None
        except ConfigError as error:  # a way to log in that fails shows when it is first used
            raise NotReachable(f"{where} cannot be logged in to: {error}") from None


def _explain(error: httpx2.HTTPStatusError, where: str, kind: str, name: str) -> RayfuseError:
    code, status = error.response.status_code, _status(error.response)
    said = status.get("message") or error.response.reason_phrase
    what = f"{kind} {name}".rstrip()
    if code == 401:
        return NotReachable(f"{where} does not know you: {said}; log in again")
    if code == 403:
        return NotReachable(f"{where} does not allow it: {said}")
    if code == 404 and not (status.get("details") or {}).get("name"):
        operator = (
            "KubeRay is not installed there, or is too old" if kind.startswith("Ray") else "it has none"
        )
        return NotReachable(
            f"{where} knows no {kind}: {operator}; docs.ray.io tells how to install KubeRay 1.7"
        )
    if code == 404 and "namespaces" in said:
        return SpecError(f"namespace: {said} on {where}; make it, or write another")
    if code == 404:
        return SpecError(f"{what}: {said}")
    if code == 409 and status.get("reason") == "AlreadyExists":
        return SpecError(
            f"{what}: there is one of this name already; choose another --name, or `kubectl delete {kind.lower()} {name}`"
        )
    if code == 409:
        return SpecError(f"{what}: somebody else has changed it: {said}")
    if code in (400, 413, 422):
        return SpecError("\n".join(f"{what}: {line}" for line in _causes(status) or [said]))
    return _Unanswered(f"{where} cannot do it now: {code} {said}")


def _status(response: httpx2.Response) -> Json:
    """What the API server says about a refusal; nothing where something else has answered."""
    try:
        found = json.loads(response.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _causes(status: Json) -> list[str]:
    """The fields that the API server finds wrong, a line each."""
    causes = (status.get("details") or {}).get("causes") or []
    return [
        f"{cause['field']}: {cause['message']}" for cause in causes if cause.get("field", "<nil>") != "<nil>"
    ]
