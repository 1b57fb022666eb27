"""Ray Train's entry on each worker: set the rank up, go on from the run's checkpoint, train, and finish."""

import json
import time
from contextlib import nullcontext
from typing import Any

import torch

from rayfuse.spec.job import Job
from rayfuse.spec.load import check
from rayfuse.train.agenda import Agenda
from rayfuse.train.board import Record
from rayfuse.train.checkpoints import SHARE_BESIDE_TRAINING, Saver
from rayfuse.train.loop import Worker
from rayfuse.train.telemetry import Telemetry
from rayfuse.train.watchdog import Watchdog


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train's entry on each worker. Rank 0 returns the evaluation of the best checkpoint."""
    import ray.train
    import ray.train.torch

    job = check(json.loads(config["job"]), Job, "job")
    splits = config["splits"]
    context = ray.train.get_context()
    rank, world, board, run = (
        context.get_world_rank(),
        context.get_world_size(),
        config["board"],
        config["run"],
    )
    if rank == 0:
        board.push.remote([_room()])
    if not job.compute.gpus_per_worker:
        torch.set_num_threads(max(1, int(job.compute.cpus_per_worker)))
    device = ray.train.torch.get_device()

    def say(text: str, step: int = 0) -> None:
        ray.get(board.push.remote([_said(text, step)]))

    worker = Worker(job, splits, config["deepspeed"], rank, world, device, say)
    worker.telemetry = Telemetry(board if rank == 0 else None, device, world)
    checkpoints = job.train.checkpoint
    worker.agenda = Agenda(checkpoints, rank, world, device, preempted=_preempted)
    if rank == 0:
        share = SHARE_BESIDE_TRAINING if device.type == "cpu" else 1.0
        worker.saver = Saver(run, checkpoints.keep_for(job.train.soup), worker.goodness, share)
        worker.profile_steps(config["profile"], run)
    worker.learn_from(config["teacher"])

    def tell(text: str) -> None:
        say(f"rank {rank}: {text}", worker.position.step)

    with Watchdog(job.compute.hang_timeout, tell) as worker.watchdog, worker.saver or nullcontext():
        worker.go_on(run, say)
        worker.train()
        outcome = worker.finish(run, config["evaluate"])
    worker.telemetry.close()
    return outcome if rank == 0 else None


def _room() -> Record:
    """Tells the driver which placement group the workers run in."""
    from ray.util import get_current_placement_group

    room = get_current_placement_group()
    assert room is not None, "Ray Train gives every worker group one"
    return {"time": time.time(), "step": 0, "metrics": {}, "room": room.id.hex()}


def _said(text: str, step: int) -> Record:
    """A line for people."""
    return {"time": time.time(), "step": step, "metrics": {}, "text": text}


def _preempted() -> bool:
    """Whether a node of this run is about to be taken away; every rank must ask."""
    import ray.train

    return ray.train.get_preemption_info() is not None
