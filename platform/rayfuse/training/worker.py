"""Ray Train's entry point on each worker."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec
from rayfuse.training.build_trainer import build_trainer
from rayfuse.training.checkpoint_trigger import CheckpointTrigger, StopRequested
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.metrics_actor import Record, RecordSender
from rayfuse.training.ray_reporter import RayReporter
from rayfuse.training.telemetry import Telemetry
from rayfuse.training.trainer import Trainer
from rayfuse.training.watchdog import Watchdog

_ABORT_SECONDS = 60.0
"""For this long, stopped workers wait to be aborted."""


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Train a job on one worker.

    Rank 0 returns the `summary` of the run (`Trainer.run`) and the `records` that the driver may not have received.
    Where the driver stops the run, no worker returns: the driver aborts it, so that Ray Train lists it as aborted.

    `config` has the job as JSON, the rows by split, the content of `load_deepspeed_config` as `deepspeed`, the URLs of
    the `run` and the `teacher`, `profile_steps`, `evaluate`, and the `metrics_actor` that receives records.
    """
    job = validate_spec(json.loads(config["job"]), Job, "job")
    context = _distributed_context()
    sender = RecordSender(config["metrics_actor"], f"rank {context.rank} {uuid.uuid4().hex}")
    if context.is_main:
        sender.send([_placement_group_record()])
    if not job.compute.gpus_per_worker:
        torch.set_num_threads(max(1, int(job.compute.cpus_per_worker)))

    def log(text: str, step: int = 0) -> None:
        sender.deliver([_text_record(text, step)])

    telemetry = Telemetry(sender if context.is_main else None, context.device, context.world_size)
    trainer = _build_trainer(job, config, context, sender, telemetry, log)
    try:
        summary = trainer.run(log, config["evaluate"])
    except StopRequested:
        if context.is_main:
            sender.deliver([_stopped_record()])
        time.sleep(_ABORT_SECONDS)
        return None
    telemetry.close()
    return {"summary": summary, "records": sender.unconfirmed()} if context.is_main else None


def _build_trainer(
    job: Job,
    config: Mapping[str, Any],
    context: DistributedContext,
    sender: RecordSender,
    telemetry: Telemetry,
    log: Callable[[str, int], None],
) -> Trainer:
    return build_trainer(
        job,
        config["splits"],
        config["deepspeed"],
        context,
        run=config["run"],
        teacher_url=config["teacher"],
        profile_steps=config["profile_steps"],
        telemetry=telemetry,
        checkpoint_trigger=CheckpointTrigger(
            job.train.checkpoint, context, _is_preempted, sender.is_stop_requested
        ),
        watchdog=Watchdog(
            job.compute.hang_timeout, lambda text, step: log(f"rank {context.rank}: {text}", step)
        ),
        reporter=RayReporter(config["run"]),
        log=lambda text: log(text, 0),
    )


def _distributed_context() -> DistributedContext:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    return DistributedContext(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )


def _placement_group_record() -> Record:
    """Return the record that names the placement group of the workers."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    assert group is not None, "Ray Train creates a placement group for every worker group"
    return {"time": time.time(), "step": 0, "metrics": {}, "placement_group": group.id.hex()}


def _text_record(text: str, step: int) -> Record:
    """Return the record of a message."""
    return {"time": time.time(), "step": step, "metrics": {}, "text": text}


def _stopped_record() -> Record:
    """Return the record of a complete checkpoint of a stopped run."""
    return {"time": time.time(), "step": 0, "metrics": {}, "stopped": 1}


def _is_preempted() -> bool:
    """Return whether a node of this run is about to be taken away; every rank must call it."""
    import ray.train

    return ray.train.get_preemption_info() is not None
