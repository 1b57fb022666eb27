"""What every worker does: continue from the checkpoint, train, validate, report; then look at the test rows once."""

import json
import math
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayfuse.data.batches import Batch, Plan, SampleStore, collate, group_rows, prefetch
from rayfuse.data.rows import Row
from rayfuse.data.samples import SampleMaker
from rayfuse.data.training import training_batch
from rayfuse.model.alignment.base import Standards
from rayfuse.model.evaluation import (
    Outputs,
    Subset,
    calibrate,
    collect,
    details,
    remember,
    score,
    subset_name,
    subsets,
)
from rayfuse.model.explain import importance
from rayfuse.model.folder import load_weights
from rayfuse.model.fused import heads_of, trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.spec.load import check
from rayfuse.train.board import Record
from rayfuse.train.distill import Answers, teacher_answers
from rayfuse.train.ema import Average
from rayfuse.train.engine import build_engine, create_model, set_learning_rate
from rayfuse.train.memory import PeakMemory
from rayfuse.train.optimizer_state import gather_optimizer, restore_optimizer, set_whole
from rayfuse.train.precision import choose_precision
from rayfuse.train.schedule import rate_factor
from rayfuse.train.soup import Soup, greedy_soup, keep_soup
from rayfuse.train.state import (
    Position,
    gather_model,
    keep_fitted,
    read_checkpoint,
    read_model,
    read_position,
    read_trained,
    write_checkpoint,
)
from rayfuse.train.stopping import should_stop
from rayfuse.train.telemetry import Telemetry

_EVALUATION_BATCH = 256
_ROWS_OBSERVED = 1024
"""Training rows that set the scale of what encoders make."""
_CPU = torch.device("cpu")


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train's entry on each worker. Rank 0 returns the evaluation of the best checkpoint."""
    import ray
    import ray.train
    import ray.train.torch

    job = check(json.loads(config["job"]), Job, "job")
    splits = {name: ray.get(reference) for name, reference in config["splits"].items()}
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        config["board"].push.remote([_room()])
    if not job.compute.gpus_per_worker:
        torch.set_num_threads(max(1, int(job.compute.cpus_per_worker)))
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(job, splits, config["deepspeed"], rank, world, ray.train.torch.get_device())
    worker.telemetry = Telemetry(config["board"] if worker.rank == 0 else None, worker.device)
    worker.learn_from(config["teacher"])
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            worker.restore(Path(folder))
    worker.train()
    best_first = sorted(
        ray.train.get_all_reported_checkpoints(),
        key=lambda reported: _goodness(job, reported.metrics),
        reverse=True,
    )
    outcome = worker.finish(
        [reported.checkpoint for reported in best_first], config["run"], config["evaluate"]
    )
    worker.telemetry.close()
    return outcome if worker.rank == 0 else None


def _room() -> Record:
    """Tells the driver which placement group the workers run in."""
    from ray.util import get_current_placement_group

    room = get_current_placement_group()
    assert room is not None, "Ray Train gives every worker group one"
    return {"time": time.time(), "step": 0, "metrics": {}, "room": room.id.hex()}


def _goodness(job: Job, metrics: Mapping[str, Any]) -> float:
    value = metrics[job.chosen_by]
    if value is None or value != value:
        return -math.inf
    return float(value if job.metrics()[job.chosen_by] == "max" else -value)


def _weights(checkpoints: Iterable[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of Ray Train's checkpoints, one after the other."""
    for checkpoint in checkpoints:
        with checkpoint.as_directory() as folder:
            yield read_model(Path(folder))


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
        self.memory = PeakMemory(self.device)
        model = create_model(job, options, world, self.precision)
        self.engine = build_engine(job, model, options, world, self.precision)
        self.heads = heads_of(self.engine.module)
        self.average = Average(self.engine.module, job.train.ema.decay) if job.train.ema else None
        self.teacher: Answers = {}
        self.position = Position()
        self.telemetry = Telemetry(None, self.device)

    @property
    def total_steps(self) -> int:
        return self.plan.steps * self.job.train.epochs

    def learn_from(self, teacher: str | None) -> None:
        """Ask the teacher at a URL about all training rows, if there is one."""
        if teacher:
            rows = self.stores["train"].rows
            self.teacher = teacher_answers(self.job, rows, teacher, self.rank, self.world, self.device)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, whatever the number of workers that wrote it."""
        model, moments, position = read_checkpoint(folder)
        self._load(read_trained(folder))
        if self.average:
            self.average.restore(model)
        restore_optimizer(self.engine, moments, self._empty_step)
        self.position = position

    def train(self) -> None:
        """Train the epochs that are left; each ends with validation, a report and a checkpoint."""
        if not self.position.step:
            self.standardize()
        self.telemetry.record(self.position.step, {}, started=self.position.epoch)
        while self.position.epoch < self.job.train.epochs and not self.position.stopped_early:
            self._seed(self.position.epoch)
            self.train_epoch(self.position.epoch)
            with self.averaged():
                metrics = self.evaluate("validation")[0]
            self.position.epoch += 1
            self.position.history.append(metrics)
            self.position.stopped_early = self._early()
            validation = {f"validation/{k}": v for k, v in metrics.items()}
            self.telemetry.record(self.position.step, validation, epoch=self.position.epoch)
            self._report(metrics)

    def standardize(self) -> None:
        """Let the alignment see some training rows, where the job wants it to bring them to one scale."""
        parts = [module for module in self.engine.module.modules() if isinstance(module, Standards)]
        if not parts:
            return
        for part in parts:
            part.observe()
        self._collect("train", None, _ROWS_OBSERVED)
        for part in parts:
            if self.world > 1:
                torch.distributed.all_reduce(part.observed)
            part.settle()

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in place of the trained ones, where the job wants them."""
        return self.average.in_place() if self.average else nullcontext()

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training rows."""
        self.engine.train()
        self.telemetry.resume_clock()
        for step, (batches, rows) in enumerate(prefetch(self._micro_batches(epoch))):
            loss, parts = self.train_step(batches, rows)
            self.position.step += 1
            if self.average:
                self.average.update(self.position.step)
            self.telemetry.step(
                epoch, self.job.train.epochs, step + 1, self.plan.steps, self.position.step, rows, loss, parts
            )

    def train_step(self, batches: Sequence[Batch], rows: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One optimizer step over this rank's micro-batches of a global batch of `rows`.

        Returns the mean loss of this rank's rows, and what it is made of (`FusedModel.losses`), detached. DeepSpeed
        averages over ranks and micro-batches, while a global batch's loss is a mean over its rows: the factor turns
        one into the other.
        """
        set_learning_rate(
            self.engine, rate_factor(self.job.train.schedule, self.position.step, self.total_steps)
        )
        factor = self.world * len(batches) / rows
        total = torch.zeros((), device=self.device)
        parts: dict[str, torch.Tensor] = {}
        for batch in batches:
            moved = batch.to(self.device)
            losses = self.engine.module.losses(self.engine(moved), moved)
            loss = self.engine.module.total_loss(losses, moved)
            self.engine.backward(loss * factor)
            self.engine.step()
            total += loss.detach().float()
            for name, part in losses.items():
                parts[name] = parts.get(name, 0.0) + part.detach().float()
        mine = max(1, sum(int(batch.whole.sum()) for batch in batches))
        return total / mine, {name: part / mine for name, part in parts.items()}

    def evaluate(self, split: str, chosen: Sequence[Subset] | None = None) -> list[dict[str, float]]:
        """Metrics over all rows of a split, the same on every rank; for each of the subsets if given."""
        return [score(self.heads, self.job, outputs) for outputs in self._collect(split, chosen)]

    def finish(self, best_first: Sequence[Any], run: str, evaluate: bool) -> dict[str, Any]:
        """What training came to, from Ray Train's checkpoints; with `evaluate` also the soup and its evaluation."""
        with best_first[0].as_directory() as folder:
            position, weights = read_position(Path(folder)), read_model(Path(folder))
        outcome = self.outcome(position.history[-1])
        if not evaluate:
            return outcome
        if self.job.train.soup:
            soup = self.make_soup(_weights(best_first[: self.job.train.soup]))
            weights = soup.weights
            outcome |= {"best_validation": soup.metrics, "soup": len(soup.ingredients)}
            if self.rank == 0:
                outcome["checkpoint"] = keep_soup(soup, run)
        evaluation = self.evaluate_best(weights)
        fitted = evaluation.pop("fitted")
        if self.rank == 0:
            keep_fitted(fitted, run)
        return outcome | evaluation

    def make_soup(self, checkpoints: Iterable[Mapping[str, torch.Tensor]]) -> Soup:
        """The greedy soup of checkpoints, the best first, by what they reach on the validation rows."""

        def reached(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
            self._load(weights)
            return self.evaluate("validation")[0]

        return greedy_soup(checkpoints, reached, lambda metrics: _goodness(self.job, metrics))

    def evaluate_best(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The best weights once on the test rows, else on the validation rows: as they are, with every subset of the
        inputs, and what each input contributed.

        Before that they are calibrated on the validation rows; `fitted` holds the buffers that were set.
        """
        self._load(weights)
        fitted = {**self._remember(), **calibrate(self.heads, *self._collect("validation", None))}
        split = "test" if "test" in self.stores else "validation"
        inputs = list(self.job.inputs)
        chosen = subsets(inputs)
        as_they_are, *_ = self._collect(split, None)
        collected = self._collect(split, [*chosen, ()])  # without any input: what contributions start from
        by_inputs = [score(self.heads, self.job, outputs) for outputs in collected[:-1]]
        return {
            "split": split,
            "rows": len(self.stores[split]),
            "metrics": score(self.heads, self.job, as_they_are),
            "by_inputs": {
                subset_name(names): metrics for names, metrics in zip(chosen, by_inputs, strict=True)
            },
            "details": details(self.heads, as_they_are),
            "explain": importance(self.heads, inputs, dict(zip([*chosen, ()], collected, strict=True))),
            "fitted": fitted,
        }

    def outcome(self, best_validation: dict[str, float]) -> dict[str, Any]:
        """What training came to."""
        return {
            "steps": self.position.step,
            "best_validation": best_validation,
            "history": self.position.history,
            "precision": self.precision,
            "memory": self.memory.told(),
        }

    def _remember(self) -> dict[str, np.ndarray]:
        """Show training rows to the tasks that want some."""
        most = max(head.remembers for head in self.heads.values())
        return remember(self.heads, *self._collect("train", None, most)) if most else {}

    def _collect(self, split: str, chosen: Sequence[Subset] | None, most: int | None = None) -> list[Outputs]:
        """Outputs of the rows of a split, or of at most so many that are spread over it; the same on every rank."""
        self.engine.eval()
        batches = (batch.to(self.device) for batch in prefetch(self._evaluation_batches(split, most)))
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
        store = self.stores["train"]
        for step in range(self.plan.steps):
            batches = [
                training_batch(numbers.tolist(), store, self.job, epoch, self.teacher)
                for numbers in self.plan.step(epoch, step, self.rank, self.world)
            ]
            yield batches, self.plan.size(step)

    def _evaluation_batches(self, split: str, most: int | None) -> Iterator[Batch]:
        """This rank's rows, in as many batches as any rank needs."""
        store = self.stores[split]
        rows = range(0, len(store), -(-len(store) // most) if most else 1)
        longest = -(-len(rows) // self.world)
        mine = rows[self.rank :: self.world]
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

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
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
            average = self.average.tensors if self.average else None
            write_checkpoint(Path(folder), self.job, model, moments, self.position, average)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _seed(self, epoch: int = 0) -> None:
        """Dropout differs by epoch and rank; the initial weights do not."""
        seed = self.job.train.seed
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed + 1_000_003 * epoch + (self.rank if epoch else 0))
