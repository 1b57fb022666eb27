"""What surviving costs: the size of checkpoints, steps that save beside steps that do not, and a killed worker."""

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
SIZE_LIMIT, STEP_LIMIT = 1.02, 1.05
ROWS, EPOCHS = 512, 60


def checkpoints() -> None:
    """Bytes of a checkpoint beside those of weights and optimizer state; seconds of a step that saves beside others."""
    from rayfuse.data.dataset import load_dataset
    from rayfuse.demo.run import prepare
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train import launch

    prepare(ROOT, print)
    for cpus in dict.fromkeys((max(1, (os.cpu_count() or 1) - 1), os.cpu_count())):
        own = [f"compute.cpus_per_worker={cpus}", "compute.workers=1", "train.deepspeed={stage: 2}"]
        job, dataset = load_dataset(load_spec(ROOT / "jobs" / "digit_arithmetic.yaml", Job, own))
        launch.connect(job)
        found = in_worker(_measure, job, dataset.splits["train"][:ROWS])
        _print_checkpoints(found, f"training on {cpus} of {os.cpu_count()} cores")


def _print_checkpoints(found: dict[str, float], where: str) -> None:
    print(
        f"checkpoints {found['bytes'] / 1e6:.2f} MB for {found['content'] / 1e6:.2f} MB of weights and moments"
        f"   {found['bytes'] / found['content']:.4f} of what it holds   at most {SIZE_LIMIT}"
    )
    print(
        f"checkpoints {where}: a step {found['usual'] * 1e3:.0f} ms, one that saves "
        f"{found['step']:.3f} of it (median of {found['saves']:.0f})   at most {STEP_LIMIT}; "
        f"that step and the {found['steps'] - 1:.0f} after it {found['all']:.3f}"
    )


def _measure(config: dict[str, Any]) -> dict[str, float]:
    import torch

    from rayfuse.model.fused import trainable_parameters
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import check
    from rayfuse.train.checkpoints import SHARE_BESIDE_TRAINING, Saver, find
    from rayfuse.train.engine import read_options
    from rayfuse.train.loop import Worker

    job = check(json.loads(config["job"]), Job, "job")
    torch.set_num_threads(int(job.compute.cpus_per_worker))
    worker = Worker(job, {"train": config["rows"]}, read_options(job))
    seconds: dict[bool, list[list[float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as run:
        worker.train_epoch(0)  # decodes the rows and warms up
        worker.saver = Saver(run, job.train.checkpoint.keep, worker.goodness, SHARE_BESIDE_TRAINING)
        for epoch in range(EPOCHS):
            saving, ends = bool(epoch % 2), []

            def due(step: int, saving: bool = saving, ends: list[float] = ends) -> bool:
                ends.append(time.perf_counter())
                return saving and len(ends) == 1

            worker.agenda.due = due  # type: ignore[method-assign]
            worker.train_epoch(0)  # the same batches each time
            worker.saver.wait()
            seconds[saving].append([after - before for before, after in itertools.pairwise(ends)])
        newest = find(run)[0]
        size = sum(mark["bytes"] for mark in newest.files.values())
    content = sum(
        parameter.numel() * 3 * 4 for parameter in trainable_parameters(worker.engine.module).values()
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
    """The median over pairs of epochs that followed one another: one that saved beside one that did not."""
    return statistics.median(
        of(saving) / of(usual) for usual, saving in zip(seconds[False], seconds[True], strict=True)
    )


def recovery() -> None:
    """Seconds from kill -9 of a worker to the first new step, and steps that were taken again."""
    from rayfuse.demo.run import prepare

    prepare(ROOT, print)
    with tempfile.TemporaryDirectory() as storage:
        options = [
            f"output.storage={storage}",
            "train.epochs=3",
            "train.checkpoint={steps: 10}",
            "compute.workers=2",
        ]
        command = [str(RAYFUSE), "train", str(ROOT / "jobs" / "digit_arithmetic.yaml"), "--json", "--fresh"]
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
            _wait(lambda: [r for r in _records(storage) if "going on" in r.get("text", "")], process)
            _wait(lambda: [r for r in _trained(storage) if r["time"] > killed + 1], process)
            [back] = [r for r in _records(storage) if "going on" in r.get("text", "")]
            step = int(back["text"].partition("from step ")[2].split()[0])
            first = next(r for r in _trained(storage) if r["time"] > back["time"])
            process.terminate()
        print(
            f"recovery    {first['time'] - killed:.1f} s from kill -9 of one of two workers to the first steps after it"
        )
        print(f"recovery    went on from step {step}; step {before} had been told: {before - step} again")


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
