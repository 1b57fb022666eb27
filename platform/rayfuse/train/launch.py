"""The driver's side of training: preflight, rows, the worker group, and the exported model."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import fsspec
import torch

from rayfuse.data.cluster import spread
from rayfuse.data.dataset import Dataset, load_dataset
from rayfuse.data.readers import data_files
from rayfuse.data.reading import urls_of
from rayfuse.data.store import Rows, Store
from rayfuse.errors import DataError, Interrupted, NotReachable, RayfuseError, ResourceError
from rayfuse.ray_auth import ensure_token
from rayfuse.spec.encoders import pretrained_in
from rayfuse.spec.job import Job
from rayfuse.train.board import Record, create_board
from rayfuse.train.engine import read_options
from rayfuse.train.precision import choose_precision
from rayfuse.train.runs import RunFolder, check_storage

_POLL_SECONDS = 0.5


def preflight(job: Job) -> None:
    """Raise for what would stop the job later: storage, DeepSpeed's options, precision, pretrained models."""
    check_storage(job.output.storage)
    read_options(job)
    if not job.compute.gpus_per_worker:
        choose_precision(job.train.precision, torch.device("cpu"))
    for name, options in job.inputs.items():
        for path, encoder in pretrained_in(options.encoder):
            _check_pretrained(".".join(["inputs", name, "encoder", *path, "model"]), encoder.model)


def _check_pretrained(path: str, model: str) -> None:
    if model.startswith("/") and not Path(model, "config.json").is_file():
        raise DataError(
            f"{path}: {model}: no Hugging Face model there (no config.json); for the demo's, run `rayfuse demo --prepare`"
        )


def connect(job: Job) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here that ends with this process."""
    elastic = job.compute.fewest < job.compute.most
    # An elastic group may wait for a worker on a node that has just gone: it is to ask again what there is.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60" if elastic else "600")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        ensure_token()  # before ray is imported; a cluster that exists has its own
    import ray

    if ray.is_initialized():
        return
    if address:
        _join(address)
        return
    wanted = job.compute.fewest * job.compute.cpus_per_worker
    cpus = max(os.cpu_count() or 1, int(-(-wanted // 1)))
    # Ray warns about four times as many processes, and a few drivers with their workers are that many.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * cpus))
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _join(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError) as error:
        raise NotReachable(
            f"RAY_ADDRESS: the Ray cluster at {address} does not let us in: {str(error).splitlines()[0]}; "
            "check the address, RAY_AUTH_MODE and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run here"
        ) from None


def load_rows(job: Job, say: Callable[[str], None]) -> tuple[Job, Dataset]:
    """Read, check and describe the rows on the cluster, which is started for that.

    They are below `rows` in the job's storage until this process no longer needs them.
    """
    for url in urls_of(job).values():
        data_files(url)  # a cluster is not started for files that are not there
    connect(job)
    _check_capacity(job)  # without it, reading could wait for ever as well
    say("reading and checking all rows")
    return load_dataset(job, Store.below(f"{job.output.storage}/rows"), spread)


Watch = Callable[[list[Record], dict[str, Any]], None]
"""Gets new records and the latest progress about twice a second."""


def train(
    job: Job,
    splits: Mapping[str, Rows],
    run: RunFolder,
    watch: Watch,
    evaluate: bool = True,
    teacher: str | None = None,
    profile: int = 0,
) -> dict[str, Any]:
    """Train `job` on the rows of a dataset, in the folder of `run`, continuing from its last checkpoint if any.

    `teacher` is where `keep_teacher` put it; `profile`: how many steps to look at closely. Returns the evaluation of the best checkpoint, or of the soup (see
    `Worker.finish`), and its URL as `checkpoint`; with `evaluate` off only what is known of the validation rows
    anyhow. Raises RayfuseError
    with the worker's own reason, Interrupted on Ctrl-C; checkpoints are kept in both cases.
    """
    import ray

    connect(job)
    _check_capacity(job)
    board = create_board()
    config = {
        "job": job.model_dump_json(),
        "splits": dict(splits),
        "deepspeed": read_options(job),
        "board": board,
        "evaluate": evaluate,
        "teacher": teacher,
        "run": run.url,
        "profile": profile,
    }
    fit = _Fit(_trainer(job, run, config))
    seen = 0
    try:
        while True:
            finished = fit.wait(_POLL_SECONDS)
            records, progress = ray.get(board.pull.remote(seen))
            seen += len(records)
            watch(records, progress)
            if finished:
                break
    except KeyboardInterrupt:
        ray.shutdown()  # ends the worker group, which belongs to this driver
        raise Interrupted(f"stopped; the last checkpoint is kept in {run.url}") from None
    outcome: dict[str, Any] = fit.result().return_value
    return outcome


class _Fit:
    """`trainer.fit()` in a thread, so that the main thread can show progress and hear Ctrl-C."""

    def __init__(self, trainer: Any) -> None:
        self._outcome: Any = None
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(trainer,), name="fit", daemon=True).start()

    def _run(self, trainer: Any) -> None:
        try:
            self._outcome = trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again in `result`
            self._outcome = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def result(self) -> Any:
        if isinstance(self._outcome, BaseException):
            raise explain(self._outcome)
        return self._outcome


_CAUSES = ("cause", "controller_failure", "__cause__")
"""Where Ray's errors and Python's have what caused them."""


def explain(error: BaseException) -> BaseException:
    """The reason of our own inside what Ray Train raised; the whole error where there is none."""
    failures = list(getattr(error, "worker_failures", {}).values())
    chain: list[BaseException] = []
    for failure in [*failures, error]:
        current: BaseException | None = failure
        while current is not None and current not in chain:
            chain.append(current)
            current = next((c for name in _CAUSES if (c := getattr(current, name, None))), None)
    for candidate in chain:
        if isinstance(candidate, RayfuseError):
            return candidate
    text = " ".join(map(str, chain))
    if "No space left on device" in text:
        return ResourceError(
            "output.storage: no space left; make room and run the same command again to go on"
        )
    return error


def _trainer(job: Job, run: RunFolder, config: dict[str, Any]) -> Any:
    """Ray Train runs, restarts and resizes the workers; checkpoints are our own (`rayfuse.train.checkpoints`)."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from rayfuse.train.entry import train_worker

    storage, filesystem = _storage(run.url.rpartition("/")[0])
    compute = job.compute
    resources = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = compute.gpus_per_worker
    scaling: Any = ScalingConfig  # Ray's stubs are of an older one
    return TorchTrainer(
        cast(Any, train_worker),  # nor do they know a function that returns something
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if compute.gpus_per_worker else "gloo"),
        scaling_config=scaling(
            num_workers=compute.workers,
            use_gpu=bool(compute.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=compute.resize_interval,
        ),
        run_config=RunConfig(
            name=run.status.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            callbacks=[_no_second_attempt()],
        ),
    )


def _no_second_attempt() -> Any:
    """A callback that ends the run where a worker failed for a reason that another attempt meets again."""
    from ray.train import UserCallback

    class NoSecondAttempt(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                reason = explain(error)
                if isinstance(reason, RayfuseError) and not isinstance(reason, NotReachable):
                    raise reason

    return NoSecondAttempt()


def _storage(url: str) -> tuple[str, Any]:
    """A storage path and filesystem as Ray Train wants them."""
    if "://" not in url:
        return url, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = fsspec.url_to_fs(url)
    return path, PyFileSystem(FSSpecHandler(fs))


def room_for(job: Job) -> int:
    """How many trainings of `job` with their fewest workers the nodes of the cluster have room for at a time, were they
    idle."""
    import ray

    each = {"CPU": job.compute.cpus_per_worker, "GPU": job.compute.gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(
        min(int(node.get(name, 0) / amount) for name, amount in each.items() if amount) for node in nodes
    )
    return workers // job.compute.fewest


def _check_capacity(job: Job) -> None:
    """The cluster must have room for the fewest workers when the job starts, or they would wait for ever."""
    if not room_for(job):
        raise ResourceError(f"compute.workers: {no_room(job)}")


def no_room(job: Job) -> str:
    """Why the cluster cannot train `job`, and what to change."""
    import ray

    total, compute = ray.cluster_resources(), job.compute
    each = f"{compute.cpus_per_worker:g} CPUs" + (
        f" and {compute.gpus_per_worker:g} GPUs" if compute.gpus_per_worker else ""
    )
    return (
        f"{compute.fewest} workers with {each} each do not fit on the cluster, whose nodes have "
        f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs; lower compute.workers, "
        "compute.cpus_per_worker or compute.gpus_per_worker"
    )


def export_model(job: Job, checkpoint: str, run: RunFolder, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write the model folder of a checkpoint to the local `folder`, and a copy of it to the run.

    What was fitted after training (see `Worker.evaluate_best`) takes the place of the checkpoint's own.
    """
    from safetensors.torch import load_file

    from rayfuse.model.folder import save_model
    from rayfuse.train.state import MODEL_FILE, read_fitted

    fs, path = fsspec.url_to_fs(f"{checkpoint}/{MODEL_FILE}")
    with tempfile.TemporaryDirectory() as scratch:
        fs.get_file(path, f"{scratch}/{MODEL_FILE}")
        weights = load_file(f"{scratch}/{MODEL_FILE}")
        save_model(folder, job, {**weights, **read_fitted(run.url)}, about)
    run.upload(folder, "model")
    return folder


def record(step: int, metrics: Mapping[str, float]) -> Record:
    """A record of the driver's own."""
    return {"time": time.time(), "step": step, "metrics": dict(metrics)}
