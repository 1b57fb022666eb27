"""Training in a process that has called `ray.init` itself: Ray Train knows the run, and Ray is left as it was."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny_jobs
import waiting
from ray.train import Result

from rayfuse.cluster.local import LocalCluster
from rayfuse.data.dataset import Dataset
from rayfuse.errors import DataError, RunInterruptedError
from rayfuse.ray_http import RayHttp
from rayfuse.ray_patches import current_dashboard_address
from rayfuse.spec.job import Job
from rayfuse.training import launch
from rayfuse.training.checkpoints import list_checkpoints
from rayfuse.training.ray_session import connect
from rayfuse.training.runs import RunFolder, create_run

pytestmark = pytest.mark.ray
EPOCHS = 30


@pytest.fixture(scope="module")
def callers_actor(ray_cluster: LocalCluster) -> Iterator[Any]:
    """Call `ray.init` as a notebook does, and start an actor."""

    class Counter:  # local, so that workers need not import this module
        def __init__(self) -> None:
            self.count = 0

        def increment(self) -> int:
            self.count += 1
            return self.count

    ray.init(log_to_driver=False, ignore_reinit_error=True)  # an earlier test may have called it
    yield ray.remote(num_cpus=0)(Counter).remote()
    ray.shutdown()


@pytest.fixture(scope="module")
def rows(callers_actor: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Dataset]:
    changes = {"train.epochs": EPOCHS, "train.early_stopping": None, "compute.workers": 2}
    job = tiny_jobs.tiny_job(tmp_path_factory.mktemp("rows"), **changes)
    return launch.load_rows(job, lambda text: None)


def train(rows: tuple[Job, Dataset], run: RunFolder, on_epoch: Callable[[int], None]) -> dict[str, Any]:
    def on_update(records: list[dict[str, Any]], progress: dict[str, Any]) -> None:
        for record in records:
            if "epoch" in record:
                on_epoch(record["epoch"])

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setenv("RAY_TMPDIR", scratch)
        try:
            return launch.train(rows[0], rows[1].splits, run, on_update)
        finally:
            assert not os.listdir(scratch)


def press_ctrl_c(epoch: int) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def interrupted(callers_actor: Any, rows: tuple[Job, Dataset]) -> RunFolder:
    """Train until Ctrl-C after an epoch."""
    run = create_run(*(rows[0], rows[1].digests))
    before = dict(os.environ)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(RunInterruptedError, match="interrupted; the checkpoint of step"):
            train(rows, run, press_ctrl_c)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert dict(os.environ) == before
    return run


@pytest.fixture(scope="module")
def finished(interrupted: RunFolder, rows: tuple[Job, Dataset]) -> tuple[RunFolder, list[int]]:
    """Resume the same run to its end; return the epochs that were reported.

    The controller is killed after a third of them, and the metrics actor after half.
    """
    # Ray Train's own list, of a controller that died after some of its checkpoints had been removed
    interrupted.write(
        "checkpoint_manager_snapshot.json", '{"checkpoint_results": [{"checkpoint_dir_name": "gone"}]}'
    )
    epochs: list[int] = []
    victims = {EPOCHS // 3: "TrainController", EPOCHS // 2: "MetricsActor"}

    def on_epoch(epoch: int) -> None:
        epochs.append(epoch)
        if epoch in victims:
            [pid] = live_actors()[victims.pop(epoch)]
            os.kill(pid, signal.SIGKILL)

    train(rows, interrupted, on_epoch)
    return interrupted, epochs


@pytest.fixture(scope="module")
def failed(callers_actor: Any, rows: tuple[Job, Dataset]) -> set[str]:
    """Train until the driver fails after an epoch; return the classes of the actors that ran until then."""
    before = live_actors().keys()
    found: set[str] = set()

    def fail(epoch: int) -> None:
        found.update(live_actors().keys() - before)
        raise DataError("of the driver")

    with pytest.raises(DataError, match="of the driver"):
        train(rows, create_run(rows[0], rows[1].digests), fail)
    return found


def placement_groups() -> list[str]:
    return [
        g["placement_group_id"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"
    ]


def live_actors() -> dict[str, list[int]]:
    """Return the process ids of the actors of each class."""
    from ray._private.state import actors

    pids: dict[str, list[int]] = {}
    for actor in actors().values():
        if actor["State"] == "ALIVE":
            pids.setdefault(actor["ActorClassName"], []).append(actor["Pid"])
    return pids


def assert_ray_is_as_before(callers_actor: Any) -> None:
    assert ray.is_initialized()
    assert ray.get(callers_actor.increment.remote()) > 0
    waiting.wait_for(lambda: not placement_groups())
    waiting.wait_for(lambda: not live_actors().keys() & {"RayTrainWorker", "TrainController", "MetricsActor"})


def test_an_interrupt_ends_the_run_and_not_ray(callers_actor: Any, interrupted: RunFolder) -> None:
    assert_ray_is_as_before(callers_actor)


def test_an_interrupt_before_the_first_step_waits_for_no_checkpoint(
    callers_actor: Any, rows: tuple[Job, Dataset]
) -> None:
    def interrupt(records: list[dict[str, Any]], progress: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    job, dataset = rows
    with pytest.raises(RunInterruptedError, match="before the first checkpoint"):
        launch.train(job, dataset.splits, create_run(job, dataset.digests), interrupt)
    assert_ray_is_as_before(callers_actor)


def test_a_finished_run_leaves_ray_running(callers_actor: Any, finished: tuple[RunFolder, list[int]]) -> None:
    assert_ray_is_as_before(callers_actor)


def test_a_failed_run_leaves_ray_running(callers_actor: Any, failed: set[str]) -> None:
    assert_ray_is_as_before(callers_actor)


def test_a_run_has_no_actors_that_it_does_not_need(failed: set[str]) -> None:
    """Each actor is a process that imports Ray. Those of Ray Train for its own bookkeeping start and end in between."""
    needed = {"MetricsActor", "RayTrainWorker", "TrainController"}
    assert needed <= failed <= needed | {"PlacementGroupCleaner", "SynchronizationActor"}


def test_a_session_of_the_caller_is_not_closed(callers_actor: Any, rows: tuple[Job, Dataset]) -> None:
    with connect(rows[0]) as session:
        assert not session.started_by_us
    assert ray.is_initialized()


def test_a_killed_metrics_actor_restarts_and_each_epoch_is_reported_once(
    finished: tuple[RunFolder, list[int]],
) -> None:
    _, epochs = finished
    first = epochs.index(EPOCHS // 2)
    assert epochs[first:] == list(range(EPOCHS // 2, EPOCHS + 1))


def test_a_killed_controller_is_replaced(finished: tuple[RunFolder, list[int]]) -> None:
    _, epochs = finished
    assert epochs.count(1) == 2, "of the checkpoint of the interrupted run, and of that before the kill"


def test_a_resumed_run_trains_only_the_epochs_that_are_left(finished: tuple[RunFolder, list[int]]) -> None:
    _, epochs = finished
    assert epochs[-1] == EPOCHS
    assert sorted(set(epochs)) == list(range(1, EPOCHS + 1))  # with those before, which are replayed


def test_the_result_of_ray_train_names_the_checkpoints_of_the_run(
    finished: tuple[RunFolder, list[int]], rows: tuple[Job, Dataset]
) -> None:
    run, _ = finished
    result: Any = Result.from_path(run.url)
    kept = {checkpoint.url: checkpoint for checkpoint in list_checkpoints(run.url)}
    assert {checkpoint.path for checkpoint, _ in result.best_checkpoints} == kept.keys()
    assert all(Path(checkpoint.path).is_dir() for checkpoint, _ in result.best_checkpoints)
    newest = max(kept.values(), key=lambda checkpoint: checkpoint.step)
    assert result.checkpoint.path == newest.url
    metric = rows[0].selection_metric
    assert result.metrics[metric] == pytest.approx((newest.metrics or {})[metric])
    best = result.get_best_checkpoint(metric, rows[0].metric_modes()[metric])
    assert best.path in kept


def test_the_dashboard_lists_the_runs(
    ray_cluster: LocalCluster, finished: tuple[RunFolder, list[int]]
) -> None:
    response = RayHttp(ray_cluster.dashboard_url, ray_cluster.token).request("GET", "/api/train/v2/runs/v1")
    runs = [run for run in response.json()["train_runs"] if run["name"] == finished[0].status.name]
    assert {run["status"] for run in runs} >= {"ABORTED", "FINISHED"}  # and that of the killed controller


def test_workers_know_the_address_of_the_dashboard(ray_cluster: LocalCluster, callers_actor: Any) -> None:
    address = ray.get(ray.remote(num_cpus=0)(current_dashboard_address).remote())
    assert f"http://{address}" == ray_cluster.dashboard_url
    assert address == current_dashboard_address()
