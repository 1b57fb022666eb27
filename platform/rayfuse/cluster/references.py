"""Look up the objects of Kubernetes that a cluster spec names, before anything is sent: pods would wait for them."""

import logging
from collections.abc import Iterator

from rayfuse.cluster.kube import KubeClient
from rayfuse.cluster.kube_errors import ForbiddenError, NoSuchResourceError
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster

_log = logging.getLogger(__name__)


def check_references(kube: KubeClient, cluster: Cluster, cluster_file: str) -> None:
    """Raise SpecError with a line for each missing namespace, Secret, claim, service account or queue.

    What this user may not read is not checked. Raises UnavailableError where the API server is unreachable.
    """
    problems = [f"{cluster_file}: {path}: {problem}" for path, problem in _missing(kube, cluster)]
    if problems:
        raise SpecError("\n".join(problems))


def _missing(kube: KubeClient, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield the path of each reference to a missing object, and what is missing with the command that creates it."""
    namespace = kube.namespace
    if not _namespace_exists(kube):
        yield (
            "namespace",
            f"{namespace} does not exist; create it with `kubectl create namespace {namespace}`",
        )
        return
    for path, kind, name, create in _references(cluster):
        try:
            if not kube.exists(kind, name):
                yield (
                    path,
                    f"no {kind} {name} in namespace {namespace}; {create.format(name=name, ns=namespace)}",
                )
        except ForbiddenError:
            _log.debug("%s: not checked: this user may not read %s %s", path, kind, name)
        except NoSuchResourceError:
            yield (
                path,
                f"Kueue is not installed on this cluster, which has no {kind}; install it, or remove `{path}`",
            )


def _namespace_exists(kube: KubeClient) -> bool:
    try:
        return kube.namespace_exists()
    except ForbiddenError:
        return True


def _references(cluster: Cluster) -> Iterator[tuple[str, str, str, str]]:
    """Yield path, kind and name of each object that a cluster spec names, and how to create one."""
    for i, name in enumerate(cluster.secrets.env):
        create = (
            "create it with `kubectl create secret generic {name} --namespace {ns} --from-literal=NAME=VALUE`"
        )
        yield f"secrets.env.{i}", "Secret", name, create
    for i, name in enumerate(cluster.image_pull_secrets):
        create = (
            "create it with `kubectl create secret docker-registry {name} --namespace {ns} --docker-server=…`"
        )
        yield f"image_pull_secrets.{i}", "Secret", name, create
    for key, volume in cluster.volumes.items():
        create = "create it with access mode ReadWriteMany"
        yield f"volumes.{key}.pvc", "PersistentVolumeClaim", volume.pvc, create
    if cluster.service_account:
        create = "create it with `kubectl create serviceaccount {name} --namespace {ns}`"
        yield "service_account", "ServiceAccount", cluster.service_account, create
    if cluster.kueue_queue:
        create = "use a queue of `kubectl get localqueues --namespace {ns}`"
        yield "kueue_queue", "LocalQueue", cluster.kueue_queue, create
