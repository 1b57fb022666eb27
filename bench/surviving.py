"""Fault tolerance: the size of checkpoints, the time of a step that saves, and recovery from a killed worker."""

import itertools
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from throughput import in_worker

ROOT = Path(__file__).parents[1]
RAYFUSE = Path(sys.executable).with_name("rayfuse")
SIZE_LIMIT = 1.02
ROWS, EPOCHS = 512, 60


def checkpoints() -> None:
    """Print the bytes of a checkpoint per byte of state, and the time of a step that saves per step that does not."""
    from rayfuse.data.dataset import load_dataset
    from rayfuse.demo.run import prepare
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec, parse_overrides
    from rayfuse.training.ray_session import connect

    prepare(ROOT)
    for cpus in dict.fromkeys((max(1, (os.cpu_count() or 1) - 1), os.cpu_count())):
        own = [f"compute.cpus_per_worker={cpus}", "compute.workers=1", "train.deepspeed={stage: 2}"]
        job, dataset = load_dataset(
            load_spec(ROOT / "jobs" / "digit_arithmetic.yaml", Job, parse_overrides(own))
        )
        connect(job)
        found = in_worker(_measure, job, dataset.splits["train"][:ROWS])
        _print_checkpoints(found, f"training on {cpus} of {os.cpu_count()} cores")


def _print_checkpoints(found: dict[str, float], where: str) -> None:
    print(
        f"checkpoints {found['bytes'] / 1e6:.2f} MB for {found['content'] / 1e6:.2f} MB of weights and moments"
        f"   ratio {found['bytes'] / found['content']:.4f}   at most {SIZE_LIMIT}"
    )
    print(
        f"checkpoints {where}: a step {found['usual'] * 1e3:.0f} ms, one that saves {found['step']:.3f} of it "
        f"(median of {found['saves']:.0f}); that step and the {found['steps'] - 1:.0f} after it {found['all']:.3f}"
    )


def _measure(config: dict[str, Any]) -> dict[str, float]:
    import torch

    from rayfuse.model.fused import trainable_parameters
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.checkpoint_trigger import CheckpointTrigger
    from rayfuse.training.checkpoints import list_checkpoints
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.distributed import DistributedContext

    job = validate_spec(json.loads(config["job"]), Job, "job")
    torch.set_num_threads(int(job.compute.cpus_per_worker))
    ends: list[float] = []
    saving = False

    class FirstStep(CheckpointTrigger):
        """Note the end of each step; while `saving`, save after the first one."""

        def should_save(self, step: int) -> bool:
            ends.append(time.perf_counter())
            return saving and len(ends) == 1

    seconds: dict[bool, list[list[float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as run:
        trainer = build_trainer(
            job,
            {"train": config["rows"]},
            load_deepspeed_config(job),
            run=run,
            checkpoint_trigger=FirstStep(job.train.checkpoint, DistributedContext()),
        )
        trainer.train_epoch(0)  # decodes the rows and warms up
        for epoch in range(EPOCHS):
            saving = bool(epoch % 2)
            ends.clear()
            trainer.train_epoch(0)  # the same batches each time
            trainer.checkpoints.wait()
            seconds[saving].append([after - before for before, after in itertools.pairwise(ends)])
        newest = list_checkpoints(run)[0]
        size = sum(digest["bytes"] for digest in newest.files.values())
    content = sum(
        parameter.numel() * 3 * 4 for parameter in trainable_parameters(trainer.engine.module).values()
    )
    return {
        "bytes": size,
        "content": content,
        "usual": statistics.median(steps[0] for steps in seconds[False]),
        "step": _ratio(seconds, operator.itemgetter(0)),
        "all": _ratio(seconds, sum),
        "steps": len(seconds[True][0]),
        "saves": len(seconds[True]),
    }


def _ratio(seconds: dict[bool, list[list[float]]], of: Callable[[list[float]], float]) -> float:
    """Return the median ratio over pairs of consecutive epochs: one that saved per one that did not."""
    return statistics.median(
        of(saving) / of(usual) for usual, saving in zip(seconds[False], seconds[True], strict=True)
    )


def recovery() -> None:
    """Print the seconds from kill -9 of a worker to the first new step, and the number of recomputed steps."""
    from rayfuse.demo.run import prepare

    prepare(ROOT)
    with tempfile.TemporaryDirectory() as storage:
        options = [
            f"output.storage={storage}",
            "train.epochs=3",
            "train.checkpoint={every_n_steps: 10}",
            "compute.workers=2",
        ]
        command = [
            str(RAYFUSE),
            "train",
            str(ROOT / "jobs" / "digit_arithmetic.yaml"),
            "--json",
            "--no-resume",
        ]
        with subprocess.Popen(
            [*command, *(f"--set={option}" for option in options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            _wait(lambda: _steps(storage) and max(_steps(storage)) >= 25, process)
            killed = time.time()
            next(
                child
                for child in psutil.Process(process.pid).children(recursive=True)
                if "RayTrainWorker" in " ".join(child.cmdline())
            ).kill()
            before = max(_steps(storage))
            _wait(lambda: [r for r in _records(storage) if "from step" in r.get("text", "")], process)
            _wait(lambda: [r for r in _trained(storage) if r["time"] > killed + 1], process)
            [resumed] = [r for r in _records(storage) if "from step" in r.get("text", "")]
            step = int(resumed["text"].partition("from step ")[2].split()[0])
            first = next(r for r in _trained(storage) if r["time"] > resumed["time"])
            process.terminate()
        print(
            f"recovery    {first['time'] - killed:.1f} s from kill -9 of one of two workers to the first steps after it"
        )
        print(f"recovery    resumed from step {step} after step {before}: {before - step} steps recomputed")


def _wait(condition: Any, process: Any) -> None:
    while not condition():
        if process.poll() is not None:
            sys.exit("recovery: rayfuse train ended too early")
        time.sleep(0.2)


def _records(storage: str) -> list[dict[str, Any]]:
    lines = [
        line for path in Path(storage).glob("*/*/metrics.jsonl") for line in path.read_text().splitlines(True)
    ]
    return [record for line in lines if line.endswith("\n") and "metrics" in (record := json.loads(line))]


def _trained(storage: str) -> list[dict[str, Any]]:
    return [record for record in _records(storage) if "train/loss" in record["metrics"]]


def _steps(storage: str) -> list[int]:
    return [record["step"] for record in _trained(storage)]
