"""Submitted specs on Kubernetes: send them, and see, follow and stop what they have become."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from rayfuse.cluster.jobs import ENDED, JobInfo, unknown
from rayfuse.cluster.kube import Json, Kube
from rayfuse.cluster.kuberay import STOPPED_AT, entrypoint_lines, job_info, service_info, waiting_for
from rayfuse.cluster.manifests import MANAGED_BY, QUEUE_LABEL, SUBMITTER
from rayfuse.errors import NotReachable, RayfuseError, SpecError

_POLL_SECONDS = 1.0
_STOP_SECONDS = 300.0
_INFO = {"RayJob": job_info, "RayService": service_info}


class KubernetesJobs:
    """What Rayfuse has submitted to one namespace (see `rayfuse.cluster.jobs.Jobs`)."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "KubernetesJobs":
        """By the kubeconfig; namespace and context are its current ones where none are given."""
        return cls(Kube.connect(namespace, context))

    def list(self) -> list[JobInfo]:
        """All jobs, sweeps and services, the newest first."""
        found = [item for kind in _INFO for item in self.kube.list(kind, MANAGED_BY)]
        found.sort(key=lambda item: item["metadata"]["creationTimestamp"], reverse=True)
        return [_INFO[item["kind"]](item) for item in found]

    def get(self, name: str) -> JobInfo:
        """One job, with the reason why its pods wait. Raises SpecError where there is none of this name."""
        found = self._find(name)
        info = _INFO[found["kind"]](found)
        if info.status == "PENDING" and not info.message:
            return replace(info, message=waiting_for(self._ray_pods(found)))
        return info

    def logs(self, name: str, follow: bool = False) -> Iterator[str]:
        """What the entrypoint has printed, line by line; with `follow` until the job has ended.

        Raises RayfuseError where nothing keeps the log.
        """
        attempt, printed = "", 0
        while True:
            found = self._find(name)
            info, pod = self._with_log(found), self._submitter(found)
            current = (found.get("status") or {}).get("jobId") or attempt
            if current != attempt:
                attempt, printed = current, 0
            if pod is None and info.status in ENDED and not printed:
                raise RayfuseError(f"{name}: {info.status}; its log has gone with its pods")
            # A submitter that starts again prints the log of the same attempt from its beginning.
            for line in islice(self._lines(pod, follow), printed, None):
                printed += 1
                yield line
            if not follow or info.status in ENDED:
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, name: str) -> JobInfo:
        """Stop a job and wait until its pods are gone; one that has ended is left as it is. A service is deleted."""
        found = self._find(name)
        info = _INFO[found["kind"]](found)
        if found["kind"] == "RayService":
            self.kube.delete("RayService", name)
            self._wait(lambda: self.kube.find("RayService", name) is None, name)
            return replace(info, status="STOPPED", ended=datetime.now(UTC), message="")
        if info.status in ENDED:
            return info
        self._suspend(found)
        self._wait(lambda: self.get(name).status in ENDED, name)
        return self.get(name)

    def send(self, manifests: Sequence[Json]) -> None:
        """Create what `manifests.render` gave: the object and its ConfigMap, or neither. A service may be there.

        Raises SpecError with the API server's reasons where it refuses, before anything is made.
        """
        spec_map, wanted = manifests
        self.check(manifests)
        name = wanted["metadata"]["name"]
        if wanted["kind"] == "RayService" and (found := self.kube.find("RayService", name)):
            self.kube.apply(_owned(spec_map, found))
            self.kube.apply(wanted)
            return
        made = self.kube.create(wanted) if wanted["kind"] == "RayJob" else self.kube.apply(wanted)
        try:
            self.kube.apply(_owned(spec_map, made))
        except BaseException:
            self.kube.delete(wanted["kind"], name)
            raise

    def check(self, manifests: Sequence[Json]) -> None:
        """Have the API server check the manifests without keeping anything."""
        spec_map, wanted = manifests
        name = wanted["metadata"]["name"]
        if wanted["kind"] == "RayService":
            found = self.kube.find("RayService", name)
            if found and not _is_ours(found):
                raise SpecError(f"RayService {name}: is there and not from Rayfuse; choose another --name")
        ask = self.kube.create if wanted["kind"] == "RayJob" else self.kube.apply
        dropped = list(_dropped(wanted["spec"], ask(wanted, dry_run=True)["spec"], "spec"))
        if dropped:
            raise NotReachable(
                f"the KubeRay of this cluster does not know {', '.join(dropped)}; install KubeRay 1.7 or newer"
            )
        self.kube.apply(spec_map, dry_run=True)

    def _find(self, name: str) -> Json:
        for kind in _INFO:
            found = self.kube.find(kind, name)
            if found and _is_ours(found):
                return found
        raise unknown(name, [job.name for job in self.list()])

    def _with_log(self, found: Json) -> JobInfo:
        name = found["metadata"]["name"]
        if found["kind"] == "RayService":
            raise SpecError(
                f"{name}: a service has no log of its own; `kubectl logs` shows those of its pods"
            )
        info = job_info(found)
        if found["spec"].get("submissionMode") == "HTTPMode":
            raise RayfuseError(
                f"{name}: HTTPMode keeps no log on Kubernetes; while its cluster is there, Ray's own has it: "
                f"`kubectl port-forward` to {info.address or 'its head'}, then rayfuse jobs logs with --address"
            )
        return info

    def _submitter(self, found: Json) -> str | None:
        """The newest pod whose submitting container has started: of the Job in K8sJobMode, else the head's."""
        status, name = found.get("status") or {}, found["metadata"]["name"]
        pods = self.kube.list("Pod", {"batch.kubernetes.io/job-name": name})
        if not pods and status.get("rayClusterName"):
            pods = self.kube.list("Pod", _of_cluster(status["rayClusterName"], "head"))
        started = [pod for pod in pods if _has_started(pod)]
        newest = max(started, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
        return str(newest["metadata"]["name"]) if newest else None

    def _lines(self, pod: str | None, follow: bool) -> Iterator[str]:
        """What the entrypoint has printed; a pod that goes, or a connection that breaks while following, ends it."""
        if pod is not None:
            with suppress(*((NotReachable, SpecError) if follow else (SpecError,))):
                yield from entrypoint_lines(self.kube.log(pod, SUBMITTER, follow))

    def _suspend(self, found: Json) -> None:
        """Take the job's pods away and keep its record.

        KubeRay suspends only what it may shut down. Where Kueue admits jobs, suspending is its business, and it does
        so when the job's Workload is no longer active.
        """
        name, labels = found["metadata"]["name"], found["metadata"].get("labels") or {}
        stopped = {"annotations": {STOPPED_AT: datetime.now(UTC).isoformat(timespec="seconds")}}
        if QUEUE_LABEL in labels:
            self.kube.patch("RayJob", name, {"metadata": stopped})
            for workload in self.kube.list("Workload", {"kueue.x-k8s.io/job-uid": found["metadata"]["uid"]}):
                self.kube.patch("Workload", workload["metadata"]["name"], {"spec": {"active": False}})
        else:
            spec = {"suspend": True, "shutdownAfterJobFinishes": True}
            self.kube.patch("RayJob", name, {"metadata": stopped, "spec": spec})

    def _ray_pods(self, found: Json) -> Sequence[Json]:
        status = found.get("status") or {}
        slots = [
            status,
            *(status.get(slot) or {} for slot in ("pendingServiceStatus", "activeServiceStatus")),
        ]
        names = [slot["rayClusterName"] for slot in slots if slot.get("rayClusterName")]
        return self.kube.list("Pod", _of_cluster(names[0])) if names else []

    def _wait(self, done: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise RayfuseError(
                    f"{name}: still there after {_STOP_SECONDS:g} s; does KubeRay's operator run?"
                )
            time.sleep(_POLL_SECONDS)


def _is_ours(found: Json) -> bool:
    return MANAGED_BY.items() <= (found["metadata"].get("labels") or {}).items()


def _of_cluster(name: str, node: str | None = None) -> Mapping[str, str]:
    return {"ray.io/cluster": name, **({"ray.io/node-type": node} if node else {})}


def _has_started(pod: Json) -> bool:
    states = (pod.get("status") or {}).get("containerStatuses") or []
    return any(
        state["name"] == SUBMITTER and {"running", "terminated"} & set(state["state"]) for state in states
    )


def _owned(spec_map: Json, owner: Json) -> Json:
    """The ConfigMap as a part of the object that it is for, which takes it along when it is deleted."""
    meta = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
    }
    return {**spec_map, "metadata": {**spec_map["metadata"], "ownerReferences": [reference]}}


def _dropped(sent: Any, kept: Any, path: str) -> Iterator[str]:
    """Fields that the API server has left out because its schema does not have them."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        for key, value in sent.items():
            if key in kept:
                yield from _dropped(value, kept[key], f"{path}.{key}")
            elif value not in ({}, []):
                yield f"{path}.{key}"
    elif isinstance(sent, list) and isinstance(kept, list):
        for i, (one, other) in enumerate(zip(sent, kept, strict=False)):
            yield from _dropped(one, other, f"{path}.{i}")
