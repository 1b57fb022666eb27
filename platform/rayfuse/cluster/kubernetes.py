"""Client of the jobs on Kubernetes: submit, list, follow and stop them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from rayfuse.cluster.jobs import TERMINAL_STATUSES, JobInfo, ignore, unknown_job_error, wait_until
from rayfuse.cluster.kube import KubeClient
from rayfuse.cluster.kube_errors import Json
from rayfuse.cluster.kuberay import (
    STOPPED_AT_ANNOTATION,
    entrypoint_lines,
    job_info,
    service_info,
)
from rayfuse.cluster.manifests import MANAGED_BY_LABELS, SUBMITTER_CONTAINER
from rayfuse.cluster.status_details import (
    OPERATOR_PODS,
    cluster_pods,
    explain_pending,
    find_workloads,
    serving_model,
    submitter_pods,
)
from rayfuse.errors import RayfuseError, SpecError, UnavailableError

_POLL_SECONDS = 1.0
_STOP_TIMEOUT_SECONDS = 120.0
_TO_JOB_INFO = {"RayJob": job_info, "RayService": service_info}


class KubernetesJobClient:
    """Jobs of Rayfuse in one namespace (implements `rayfuse.cluster.jobs.JobClient`)."""

    def __init__(self, kube: KubeClient) -> None:
        self.kube = kube

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "KubernetesJobClient":
        """Connect with the kubeconfig; namespace and context default to its current ones."""
        return cls(KubeClient.connect(namespace, context))

    def list(self) -> list[JobInfo]:
        """Return all jobs, sweeps and services, the newest first."""
        found = [item for kind in _TO_JOB_INFO for item in self.kube.list(kind, MANAGED_BY_LABELS)]
        found.sort(key=lambda item: item["metadata"]["creationTimestamp"], reverse=True)
        return [_TO_JOB_INFO[item["kind"]](item) for item in found]

    def get(self, name: str) -> JobInfo:
        """Return a job, with the reason why its pods are pending; raise SpecError where there is none of this name."""
        found = self.find(name)
        return self._with_details(found, _TO_JOB_INFO[found["kind"]](found))

    def _with_details(self, manifest: Json, info: JobInfo) -> JobInfo:
        """Add to a status what is in other objects: the reason why it is pending, or the version that is serving."""
        if info.status == "PENDING":
            reasons = (info.message, explain_pending(self.kube, manifest))
            return replace(info, message="; ".join(filter(None, reasons)))
        if info.status == "UPDATE_FAILED":
            model = serving_model(self.kube, manifest) or "the previous version"
            return replace(info, message=f"{info.message}; {model} is still serving")
        return info

    def logs(
        self, name: str, follow: bool = False, on_wait: Callable[[JobInfo], object] = ignore
    ) -> Iterator[str]:
        """Yield the lines of the entrypoint's output; with `follow` until the job has ended.

        `on_wait` is called with the status while a followed job has no log yet. Raises SpecError for a service,
        RayfuseError where the log is not available.
        """
        attempt, num_printed = "", 0
        while True:
            found = self.find(name)
            info, pod = self._check_has_logs(found), self._find_submitter_pod(found)
            current = (found.get("status") or {}).get("jobId") or attempt
            if current != attempt:
                attempt, num_printed = current, 0
            if pod is None and not num_printed:
                self._check_log_follows(found, info, follow)
                on_wait(self._with_details(found, info))
            # A restarted submitter prints the log of the same attempt from the beginning.
            for line in islice(self._read_log_lines(pod, follow), num_printed, None):
                num_printed += 1
                yield line
            if not follow or info.status in TERMINAL_STATUSES:
                return
            time.sleep(_POLL_SECONDS)

    def _check_log_follows(self, manifest: Json, info: JobInfo, follow: bool) -> None:
        """Raise RayfuseError where a job without a log has ended, or is not followed."""
        if info.status in TERMINAL_STATUSES:
            raise RayfuseError(f"{info.name}: {info.status}; its log was deleted with its pods")
        if not follow:
            raise RayfuseError(f"{self._with_details(manifest, info).summary}\n{info.name}: no log yet")

    def stop(self, name: str) -> JobInfo:
        """Suspend a job and wait until its pods are gone; a job that has ended is not changed. Delete a service."""
        found = self.find(name)
        info = _TO_JOB_INFO[found["kind"]](found)
        if found["kind"] == "RayService":
            self.kube.delete("RayService", name)
            self._wait_until_stopped(name, lambda: self.kube.find("RayService", name) is None)
            return replace(info, status="STOPPED", ended=datetime.now(UTC), message="")
        if info.status in TERMINAL_STATUSES:
            return info
        self.suspend(found)
        self._wait_until_stopped(name, lambda: self.get(name).status in TERMINAL_STATUSES)
        return self.get(name)

    def submit(self, manifests: Sequence[Json]) -> None:
        """Create the ConfigMap and the RayJob or RayService of `manifests.render`, or neither; update a service.

        Raises SpecError with the API server's reasons where it rejects them, before anything is created.
        """
        config_map, manifest = manifests
        self.dry_run(manifests)
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "RayService" and (found := self.kube.find("RayService", name)):
            self.kube.apply(_with_owner_reference(config_map, found))
            self.kube.apply(manifest)
            return
        created = self.kube.create(manifest) if manifest["kind"] == "RayJob" else self.kube.apply(manifest)
        try:
            self.kube.apply(_with_owner_reference(config_map, created))
        except BaseException:
            self.kube.delete(manifest["kind"], name)
            raise

    def dry_run(self, manifests: Sequence[Json]) -> None:
        """Have the API server validate the manifests without storing them.

        Raises SpecError where it rejects one, UnavailableError where its KubeRay is too old for a field.
        """
        config_map, manifest = manifests
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "RayService":
            found = self.kube.find("RayService", name)
            if found and not _is_managed(found):
                raise SpecError(
                    f"RayService {name}: exists and is not managed by Rayfuse; choose another name"
                )
        send = self.kube.create if manifest["kind"] == "RayJob" else self.kube.apply
        dropped = list(_dropped_fields(manifest["spec"], send(manifest, dry_run=True)["spec"], "spec"))
        if dropped:
            raise UnavailableError(
                f"the KubeRay of this cluster does not support {', '.join(dropped)}; install KubeRay 1.7 or newer"
            )
        self.kube.apply(config_map, dry_run=True)

    def suspend(self, manifest: Json) -> None:
        """Suspend a RayJob, which deletes its pods but not its record.

        KubeRay suspends only jobs that it may shut down. Kueue suspends the jobs that it manages itself, once their
        Workload is no longer active.
        """
        name, workloads = manifest["metadata"]["name"], find_workloads(self.kube, manifest)
        stopped = {"annotations": {STOPPED_AT_ANNOTATION: datetime.now(UTC).isoformat(timespec="seconds")}}
        spec = {} if workloads else {"suspend": True, "shutdownAfterJobFinishes": True}
        self.kube.patch("RayJob", name, {"metadata": stopped, "spec": spec})
        for workload in workloads:
            self.kube.patch("Workload", workload["metadata"]["name"], {"spec": {"active": False}})

    def find(self, name: str) -> Json:
        """Return the RayJob or RayService of a job; raise SpecError where there is none of this name."""
        for kind in _TO_JOB_INFO:
            found = self.kube.find(kind, name)
            if found and _is_managed(found):
                return found
        raise unknown_job_error(name, [job.name for job in self.list()])

    def _check_has_logs(self, manifest: Json) -> JobInfo:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "RayService":
            raise SpecError(f"{name}: a service has no log; use `kubectl logs` for those of its pods")
        info = job_info(manifest)
        if manifest["spec"].get("submissionMode") == "HTTPMode":
            raise RayfuseError(
                f"{name}: no log on Kubernetes in HTTPMode; while its cluster exists, use `kubectl port-forward` to "
                f"{info.dashboard_url or 'its head'}, then `rayfuse jobs logs --address`"
            )
        return info

    def _find_submitter_pod(self, manifest: Json) -> str | None:
        """Return the newest pod whose submitter container has started: of the Job in K8sJobMode, else the head."""
        status = manifest.get("status") or {}
        pods = submitter_pods(self.kube, manifest)
        if not pods and status.get("rayClusterName"):
            pods = cluster_pods(self.kube, status["rayClusterName"], "head")
        started = [pod for pod in pods if _has_started(pod)]
        newest = max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
        return str(newest["metadata"]["name"]) if newest else None

    def _read_log_lines(self, pod: str | None, follow: bool) -> Iterator[str]:
        """Yield the entrypoint's output until its pod is deleted or, while following, the connection is lost."""
        if pod is not None:
            with suppress(*((UnavailableError, SpecError) if follow else (SpecError,))):
                yield from entrypoint_lines(self.kube.log(pod, SUBMITTER_CONTAINER, follow))

    def _wait_until_stopped(self, name: str, is_stopped: Callable[[], bool]) -> None:
        message, remedy = (
            f"{name}: not stopped by KubeRay's operator",
            f"check that it is running: {OPERATOR_PODS}",
        )
        wait_until(is_stopped, _STOP_TIMEOUT_SECONDS, _POLL_SECONDS, message, remedy)


def _is_managed(manifest: Json) -> bool:
    return MANAGED_BY_LABELS.items() <= (manifest["metadata"].get("labels") or {}).items()


def _has_started(pod: Json) -> bool:
    states = (pod.get("status") or {}).get("containerStatuses") or []
    return any(
        state["name"] == SUBMITTER_CONTAINER and {"running", "terminated"} & set(state["state"])
        for state in states
    )


def _with_owner_reference(config_map: Json, owner: Json) -> Json:
    """Make the ConfigMap a dependent of the object that uses it, which is deleted with it."""
    meta = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
    }
    return {**config_map, "metadata": {**config_map["metadata"], "ownerReferences": [reference]}}


def _dropped_fields(sent: Any, kept: Any, path: str) -> Iterator[str]:
    """Yield the paths of fields that the API server has dropped because its schema does not have them."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for key, value in sent.items():
            if key in kept:
                yield from _dropped_fields(value, kept[key], f"{path}.{key}")
            elif value not in ({}, []):
                yield f"{path}.{key}"
    elif isinstance(sent, list) and isinstance(kept, list):
        for i, (one, other) in enumerate(zip(sent, kept, strict=False)):
            yield from _dropped_fields(one, other, f"{path}.{i}")
