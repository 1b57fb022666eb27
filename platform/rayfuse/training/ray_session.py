"""The connection of this process to Ray. A Ray that the caller started is used, and left as it was."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from rayfuse.errors import ResourceError, SpecError, UnavailableError
from rayfuse.ray_auth import ensure_token
from rayfuse.ray_patches import current_dashboard_address, hide_node_messages, is_on_loopback, on_loopback
from rayfuse.spec.job import Job
from rayfuse.temp_dirs import socket_base_dir
from rayfuse.text_encoding import check_encoding
from rayfuse.training.ray_errors import unwrap_error

_POLL_SECONDS = "0.5"
"""Ray Train's controller takes one report per poll, and polls every 2 s by default: epochs may be shorter."""

_SESSION_LENGTH = 70
"""Maximum length of what Ray adds to the folder for its sockets."""

T = TypeVar("T")


@dataclass
class RaySession:
    """A connection to Ray, as returned by `connect`; as a context manager, it closes itself."""

    started_by_us: bool
    """True if `connect` called `ray.init`, because this process was not connected before."""
    namespace: str
    """Ray's namespace of the connection, unique unless the caller chose it."""
    undo: Callable[[], None] = lambda: None
    """Undoes changes of Ray's output."""

    def close(self) -> None:
        """Shut Ray down if `connect` started it and it is still the same; otherwise do nothing."""
        import ray

        if self.started_by_us and ray.is_initialized() and _namespace() == self.namespace:
            ray.shutdown()
        self.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(job: Job) -> RaySession:
    """Return the connection of this process to Ray; without one, join RAY_ADDRESS, or start Ray on this machine.

    A Ray that is started here has at least the CPUs of the job's workers, listens on loopback only, and ends with this
    process at the latest.

    Raises:
        SpecError: RAY_ADDRESS is the address of a dashboard, this Python does not use UTF-8, or Ray cannot use RAY_TMPDIR.
        ResourceError: Ray cannot start on this machine.
        UnavailableError: The cluster at RAY_ADDRESS does not respond, or authentication failed.
    """
    check_encoding()
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return RaySession(started_by_us=False, namespace=_namespace())
    address = os.environ.get("RAY_ADDRESS")
    with _keep_sigterm_handler():
        if address:
            _join_cluster(address)
        else:
            # Ray reads the variables when it is imported; after that, `ray.init` itself enables tokens.
            if "ray" not in sys.modules:
                ensure_token()
            _start_local(job)
    return RaySession(started_by_us=True, namespace=_namespace(), undo=hide_node_messages())


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore a handler of SIGTERM that this process has installed: `ray.init` replaces it."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _start_local(job: Job) -> None:
    import ray

    required = job.compute.min_workers * job.compute.cpus_per_worker
    cpus = max(os.cpu_count() or 1, int(-(-required // 1)))
    # A few drivers and their workers reach the number of processes per CPU at which Ray warns.
    folder = f"{socket_base_dir(_SESSION_LENGTH)}/ray"
    with environment_defaults(RAY_worker_maximum_startup_concurrency=str(4 * cpus)), on_loopback():
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        except Exception as error:
            raise ResourceError(
                f"Ray did not start on this machine: {str(error).splitlines()[0]} Its logs are in {folder}/session_latest/logs; "
                "run the command again when the machine has free memory and processor time, or set RAY_ADDRESS to a cluster"
            ) from error


def _join_cluster(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise SpecError(
            f"RAY_ADDRESS: {address} is the address of a dashboard, and a cluster is joined at that of its head; set "
            f"RAY_ADDRESS=HOST:6379, or run `rayfuse submit --address {address}`"
        )
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise UnavailableError(
            f"RAY_ADDRESS: authentication to the Ray cluster at {address} failed: {str(error).splitlines()[0]}; "
            "check RAY_AUTH_MODE and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run on this machine"
        ) from None
    except ConnectionError as error:
        raise UnavailableError(
            f"RAY_ADDRESS: the Ray cluster at {address} does not respond: {str(error).splitlines()[0]}; "
            "check the address, or unset RAY_ADDRESS to run on this machine"
        ) from None


def _namespace() -> str:
    import ray

    return str(ray.get_runtime_context().namespace)


@contextmanager
def environment_defaults(**settings: str) -> Iterator[None]:
    """Set those environment variables that are unset, for the duration of the context."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def train_settings(job: Job) -> Iterator[None]:
    """Give Ray Train the settings of a job, for the duration of one `fit`, unless the user has set them."""
    elastic = job.compute.min_workers < job.compute.max_workers
    settings = {
        # An elastic group may wait for a worker on a lost node: it must soon see the resources that are left.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60" if elastic else "600",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_SECONDS,
    }
    if current_dashboard_address():
        settings["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"  # for the dashboard's Train tab
    if is_on_loopback():
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # one machine is not preempted
    with environment_defaults(**settings):
        yield


class FitThread(Generic[T]):
    """`fit` of a Ray trainer or tuner in a thread, so that the main thread can show progress and receive Ctrl-C."""

    def __init__(self, fit: Callable[[], T]) -> None:
        self._fit = fit
        self._results: list[T] = []
        self.error: BaseException | None = None
        """Exception from `fit`, as Ray raised it."""
        self._done = threading.Event()
        threading.Thread(target=self._run, name="fit", daemon=True).start()

    def _run(self) -> None:
        try:
            self._results.append(self._fit())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self.error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of `fit`; return whether it has ended."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """Wait for the end of `fit` and return its result. Raises its error, unwrapped (see `unwrap_error`)."""
        self._done.wait()
        if self.error is not None:
            raise unwrap_error(self.error)
        return self._results[0]


def remove_placement_group(group: str) -> None:
    """End the actors in a placement group, given by its hexadecimal id, and remove it; one that is gone is ignored.

    Ray Train ends the workers of a dead controller only if it finds it through the dashboard, which may be off, slow, or
    belong to another cluster.
    """
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup
    from ray.util.placement_group import remove_placement_group as remove

    remove(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
