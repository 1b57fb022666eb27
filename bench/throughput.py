"""Rows per second of Rayfuse's loop beside a bare PyTorch loop: same rows, batches, model, precision and process.

The two take turns inside one Ray Train worker, so that whatever else the machine does hits both.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROUNDS = 24
ROWS = 256
LIMIT = 0.9


def run() -> None:
    """Print rows per second of both, their ratio, and what it took to start."""
    from rayfuse.data.dataset import load_dataset
    from rayfuse.demo.run import prepare
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train import launch

    prepare(ROOT, print)
    job = load_spec(
        ROOT / "jobs" / "digit_arithmetic.yaml", Job, [f"compute.cpus_per_worker={os.cpu_count()}"]
    )
    job, dataset = load_dataset(
        job.model_copy(update={"compute": job.compute.model_copy(update={"workers": 1})})
    )
    rows = dataset.splits["train"][:ROWS]
    started = time.perf_counter()
    launch.connect(job)
    found = in_worker(_measure, job, rows)
    wall = time.perf_counter() - started
    ours, bare = statistics.median(found["ours"]), statistics.median(found["bare"])
    print(
        f"throughput  start-up: {wall - found['seconds']:.1f} s for Ray, worker and model; {found['precision']}"
    )
    print(f"throughput  rayfuse  {ours:7.1f} rows/s   median of {len(found['ours'])} turns")
    print(f"throughput  bare     {bare:7.1f} rows/s   median of {len(found['bare'])} turns")
    ratio = statistics.median(o / b for o, b in zip(found["ours"], found["bare"], strict=True))
    print(f"throughput  ratio    {ratio:7.3f}   at least {LIMIT}")


def in_worker(measure: Callable[[dict[str, Any]], Any], job: Any, rows: Any) -> dict[str, Any]:
    """What `measure` returns in one Ray Train worker; it gets the job as JSON and a reference to the rows."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as storage:
        trainer = TorchTrainer(
            measure,
            train_loop_config={"job": job.model_dump_json(), "rows": rows},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": job.compute.cpus_per_worker}
            ),
            run_config=RunConfig(name="bench", storage_path=storage),
        )
        found: dict[str, Any] = trainer.fit().return_value
    ray.shutdown()
    return found


def _measure(config: dict[str, Any]) -> dict[str, Any]:
    import torch

    from rayfuse.model.fused import FusedModel
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import check
    from rayfuse.train.engine import parameter_groups, read_options
    from rayfuse.train.loop import Worker

    job = check(json.loads(config["job"]), Job, "job")
    torch.set_num_threads(int(job.compute.cpus_per_worker))
    worker = Worker(job, {"train": config["rows"]}, read_options(job))
    model = FusedModel(job).train()
    optimizer = torch.optim.AdamW(parameter_groups(job, model), betas=job.train.optimizer.betas)
    started = time.perf_counter()
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(ROUNDS + 1):
        epoch = turn % 2
        ours = timed(lambda epoch=epoch: worker.train_epoch(epoch), len(worker.stores["train"]))
        bare = timed(
            lambda epoch=epoch: _bare_epoch(worker, model, optimizer, epoch), len(worker.stores["train"])
        )
        if turn:  # the first round decodes the rows and warms up
            rates["ours"].append(ours)
            rates["bare"].append(bare)
    return {**rates, "seconds": time.perf_counter() - started, "precision": worker.precision}


def timed(work: Any, rows: int) -> float:
    """Rows per second of work on so many."""
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def _bare_epoch(worker: Any, model: Any, optimizer: Any, epoch: int) -> None:
    """What one would write without Rayfuse, over the very batches of its loop."""
    import torch

    from rayfuse.train.precision import DTYPES

    dtype = DTYPES[worker.precision]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for batches, rows in worker.loader.steps(epoch):
        for batch in batches:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = model.total_loss(model.losses(model(batch), batch), batch) / rows
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
