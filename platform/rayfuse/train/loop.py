"""What every worker does: continue from the checkpoint, train, validate, report; then look at the test rows once."""

import json
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayfuse.data.batches import Batch, Plan, SampleStore, collate, drop_inputs, group_rows, prefetch
from rayfuse.data.rows import Row
from rayfuse.data.samples import SampleMaker
from rayfuse.model.evaluation import (
    Outputs,
    Subset,
    calibrate,
    collect,
    details,
    score,
    subset_name,
    subsets,
)
from rayfuse.model.folder import load_weights
from rayfuse.model.fused import FusedModel, heads_of, trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.spec.load import check
from rayfuse.train.engine import build_engine, set_learning_rate
from rayfuse.train.precision import choose_precision
from rayfuse.train.schedule import rate_factor
from rayfuse.train.state import (
    Position,
    gather_model,
    gather_optimizer,
    read_checkpoint,
    read_model,
    read_position,
    restore_optimizer,
    set_whole,
    write_checkpoint,
)
from rayfuse.train.stopping import should_stop
from rayfuse.train.telemetry import Telemetry

_EVALUATION_BATCH = 256
_CPU = torch.device("cpu")


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train's entry on each worker. Rank 0 returns the evaluation of the best checkpoint."""
    import ray
    import ray.train
    import ray.train.torch

    job = check(json.loads(config["job"]), Job, "job")
    splits = {name: ray.get(reference) for name, reference in config["splits"].items()}
    context = ray.train.get_context()
    if not job.compute.gpus_per_worker:
        torch.set_num_threads(max(1, int(job.compute.cpus_per_worker)))
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(job, splits, config["deepspeed"], rank, world, ray.train.torch.get_device())
    worker.telemetry = Telemetry(config["board"] if worker.rank == 0 else None, worker.device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            worker.restore(Path(folder))
    worker.train()
    best = max(
        ray.train.get_all_reported_checkpoints(),
        key=lambda reported: _goodness(job, reported.metrics),
    )
    with best.checkpoint.as_directory() as folder:
        outcome = worker.outcome(Path(folder))
        if config["evaluate"]:
            outcome |= worker.evaluate_best(Path(folder))
    worker.telemetry.close()
    return outcome if worker.rank == 0 else None


def _goodness(job: Job, metrics: dict[str, Any]) -> float:
    value = metrics[job.chosen_by]
    if value is None or value != value:
        return -math.inf
    return float(value if job.metrics()[job.chosen_by] == "max" else -value)


class Worker:
    """One rank of a training run: its rows, its engine and its position."""

    telemetry: Telemetry

    def __init__(
        self,
        job: Job,
        splits: dict[str, list[Row]],
        options: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        device: torch.device = _CPU,
    ) -> None:
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self._seed()
        maker = SampleMaker(job.inputs, job.tasks)
        self.modalities = maker.modalities
        self.stores = {name: SampleStore(rows, maker) for name, rows in splits.items()}
        self.plan = Plan(
            len(self.stores["train"]),
            job.train.batch_size,
            job.train.accumulate,
            job.train.seed,
            group_rows(splits["train"], job.tasks),
        )
        self.precision, self.precision_reason = choose_precision(job.train.precision, self.device)
        self.engine = build_engine(job, FusedModel(job), options, world, self.precision)
        self.heads = heads_of(self.engine.module)
        self.position = Position()
        self.telemetry = Telemetry(None, self.device)

    @property
    def total_steps(self) -> int:
        return self.plan.steps * self.job.train.epochs

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, whatever the number of workers that wrote it."""
        model, moments, position = read_checkpoint(folder)
        self._load(model)
        restore_optimizer(self.engine, moments, position.step, self._empty_step)
        self.position = position

    def train(self) -> None:
        """Train the epochs that are left; each ends with validation, a report and a checkpoint."""
        self.telemetry.record(self.position.step, {}, started=self.position.epoch)
        while self.position.epoch < self.job.train.epochs and not self.position.stopped_early:
            self._seed(self.position.epoch)
            self.train_epoch(self.position.epoch)
            metrics = self.evaluate("validation")[0]
            self.position.epoch += 1
            self.position.history.append(metrics)
            self.position.stopped_early = self._early()
            validation = {f"validation/{k}": v for k, v in metrics.items()}
            self.telemetry.record(self.position.step, validation, epoch=self.position.epoch)
            self._report(metrics)

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training rows."""
        self.engine.train()
        self.telemetry.resume_clock()
        for step, (batches, rows) in enumerate(prefetch(self._micro_batches(epoch))):
            loss = self.train_step(batches, rows)
            self.position.step += 1
            self.telemetry.step(
                epoch, self.job.train.epochs, step + 1, self.plan.steps, self.position.step, rows, loss
            )

    def train_step(self, batches: Sequence[Batch], rows: int) -> torch.Tensor:
        """One optimizer step over this rank's micro-batches of a global batch of `rows`.

        Returns the mean loss of this rank's rows, detached. DeepSpeed averages over ranks and micro-batches,
        while a global batch's loss is a mean over its rows: the factor turns one into the other.
        """
        set_learning_rate(
            self.engine, rate_factor(self.job.train.schedule, self.position.step, self.total_steps)
        )
        factor = self.world * len(batches) / rows
        total = torch.zeros((), device=self.device)
        for batch in batches:
            moved = batch.to(self.device)
            outputs = self.engine(moved)
            loss = self.engine.module.total_loss(self.engine.module.losses(outputs, moved), moved)
            self.engine.backward(loss * factor)
            self.engine.step()
            total += loss.detach().float()
        return total / max(1.0, sum(float(batch.weights.sum()) for batch in batches))

    def evaluate(self, split: str, chosen: Sequence[Subset] | None = None) -> list[dict[str, float]]:
        """Metrics over all rows of a split, the same on every rank; for each of the subsets if given."""
        return [score(self.heads, self.job, outputs) for outputs in self._collect(split, chosen)]

    def evaluate_best(self, folder: Path) -> dict[str, Any]:
        """The best checkpoint on the validation rows, and once on the test rows with every subset of inputs.

        Before that it is calibrated on the validation rows; `calibration` holds the buffers that the model then has.
        """
        self._load(read_model(folder))
        calibration = calibrate(self.heads, *self._collect("validation", None))
        split = "test" if "test" in self.stores else "validation"
        chosen = subsets(list(self.job.inputs))
        as_they_are, *_ = self._collect(split, None)
        by_inputs = self.evaluate(split, chosen)
        return {
            "split": split,
            "rows": len(self.stores[split]),
            "metrics": score(self.heads, self.job, as_they_are),
            "by_inputs": {
                subset_name(names): metrics for names, metrics in zip(chosen, by_inputs, strict=True)
            },
            "details": details(self.heads, as_they_are),
            "calibration": calibration,
        }

    def outcome(self, folder: Path) -> dict[str, Any]:
        """What training came to; `folder` is the best checkpoint."""
        return {
            "steps": self.position.step,
            "best_validation": read_position(folder).history[-1],
            "history": self.position.history,
            "precision": self.precision,
        }

    def _collect(self, split: str, chosen: Sequence[Subset] | None) -> list[Outputs]:
        self.engine.eval()
        batches = (batch.to(self.device) for batch in prefetch(self._evaluation_batches(split)))
        mine = collect(self.engine, self.heads, batches, chosen)
        if self.world == 1:
            return mine
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, mine)
        merged = [Outputs() for _ in mine]
        for part in gathered:
            for into, outputs in zip(merged, part, strict=True):
                into.merge(outputs)
        return merged

    def _micro_batches(self, epoch: int) -> Iterator[tuple[list[Batch], int]]:
        store, train = self.stores["train"], self.job.train
        for step in range(self.plan.steps):
            batches = [
                collate(
                    [
                        drop_inputs(store[n], self.job.inputs, train.input_dropout, (train.seed, epoch, n))
                        for n in map(int, numbers)
                    ],
                    self.modalities,
                    blanks=True,
                )
                for numbers in self.plan.step(epoch, step, self.rank, self.world)
            ]
            yield batches, self.plan.size(step)

    def _evaluation_batches(self, split: str) -> Iterator[Batch]:
        """This rank's rows, in as many batches as any rank needs."""
        store = self.stores[split]
        longest = -(-len(store) // self.world)
        mine = range(self.rank, len(store), self.world)
        for start in range(0, longest, _EVALUATION_BATCH):
            numbers = mine[start : start + _EVALUATION_BATCH]
            yield collate([store[n] for n in numbers], self.modalities, blanks=True)

    def _empty_step(self) -> None:
        self.engine.train()
        set_learning_rate(self.engine, 0.0)
        for _ in range(self.job.train.accumulate):
            batch = collate([], self.modalities, blanks=True).to(self.device)
            outputs = self.engine(batch)
            losses = self.engine.module.losses(outputs, batch)
            self.engine.backward(self.engine.module.total_loss(losses, batch))
            self.engine.step()

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        """Put trained tensors in place, in the model and in the optimizer's own float32 copy of it."""
        import deepspeed

        model, stage = self.engine.module, self.engine.zero_optimization_stage()
        parameters = trainable_parameters(model)
        with deepspeed.zero.GatheredParameters(
            list(parameters.values()), modifier_rank=0, enabled=stage == 3
        ):
            if self.rank == 0 or stage < 3:
                load_weights(model, weights)
        if stage > 0:
            for name, parameter in parameters.items():
                set_whole(self.engine, parameter, weights[name])

    def _early(self) -> bool:
        stopping = self.job.train.early_stopping
        if stopping is None:
            return False
        values = [metrics[stopping.metric] for metrics in self.position.history]
        return should_stop(values, self.job.metrics()[stopping.metric], stopping.patience)

    def _report(self, metrics: dict[str, float]) -> None:
        """Hand metrics and a checkpoint to Ray Train; every rank gathers, rank 0 writes."""
        import ray.train

        model, moments = gather_model(self.engine), gather_optimizer(self.engine)
        if self.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), self.job, model, moments, self.position)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _seed(self, epoch: int = 0) -> None:
        """Dropout differs by epoch and rank; the initial weights do not."""
        seed = self.job.train.seed
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed + 1_000_003 * epoch + (self.rank if epoch else 0))
