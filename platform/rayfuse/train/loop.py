"""What every rank does: continue from the checkpoint, train, validate, report; then look at the test rows once."""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayfuse.data.ahead import Loader, Steps
from rayfuse.data.batches import Batch, Plan, SampleStore, collate
from rayfuse.data.rows import Row
from rayfuse.data.samples import SampleMaker
from rayfuse.errors import RayfuseError
from rayfuse.model.alignment.base import Standards
from rayfuse.model.folder import load_weights
from rayfuse.model.fused import trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.train.adapters import adapter_beginnings
from rayfuse.train.agenda import Agenda
from rayfuse.train.checkpoints import Checkpoint, Saver, newest, opened
from rayfuse.train.distill import Answers, teacher_answers
from rayfuse.train.ema import Average
from rayfuse.train.engine import build_engine, create_model, set_learning_rate
from rayfuse.train.evaluator import Evaluator
from rayfuse.train.feature_cache import encode_frozen
from rayfuse.train.gradients import gradient_norm, keep_gradient_norm
from rayfuse.train.guard import Guard, RollBack, Verdict, named
from rayfuse.train.host_copies import Copies, copy_to_cpu
from rayfuse.train.memory import PeakMemory
from rayfuse.train.meter import Measured, Meter, Place
from rayfuse.train.optimizer_state import gather_optimizer, restore_optimizer, set_whole
from rayfuse.train.precision import choose_precision
from rayfuse.train.profile import Profile
from rayfuse.train.schedule import rate_factor
from rayfuse.train.soup import Soup, greedy_soup, keep_soup
from rayfuse.train.state import (
    Position,
    gather_model,
    keep_fitted,
    read_checkpoint,
    read_loss_scale,
    read_model,
    read_position,
    read_trained,
    restore_loss_scale,
    write_checkpoint,
)
from rayfuse.train.stopping import should_stop
from rayfuse.train.telemetry import Telemetry
from rayfuse.train.watchdog import Watchdog

_ROWS_OBSERVED = 1024
"""Training rows that set the scale of what encoders make."""
_CPU = torch.device("cpu")


def _weights(checkpoints: Iterable[Checkpoint]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of checkpoints, one after the other."""
    for checkpoint in checkpoints:
        with opened(checkpoint) as folder:
            yield read_model(folder)


class Worker:
    """One rank of a training run: its rows, its engine and its position."""

    telemetry: Telemetry
    agenda: Agenda
    saver: Saver | None = None
    """Of rank 0, which writes for all."""
    watchdog = Watchdog(None, print)

    def __init__(
        self,
        job: Job,
        splits: Mapping[str, Sequence[Row]],
        options: dict[str, Any],
        rank: int = 0,
        world: int = 1,
        device: torch.device = _CPU,
        say: Callable[[str], None] = print,
    ) -> None:
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.precision, self.precision_reason = choose_precision(job.train.precision, self.device)
        encoded = encode_frozen(job, splits, rank, world, device, self.precision, say)
        self._seed()
        maker = SampleMaker(job.inputs, job.tasks, encoded.values)
        self.modalities = maker.modalities
        self.stores = {
            name: SampleStore(rows, maker, job.compute.keep_samples, encoded.numbers[name])
            for name, rows in splits.items()
        }
        self.plan = Plan.of(splits["train"], job)
        self.memory = PeakMemory(self.device)
        model = create_model(job, options, world, self.precision)
        self.engine = build_engine(job, model, options, world, self.precision)
        keep_gradient_norm(self.engine)
        self.evaluator = Evaluator(job, self.engine, self.stores, maker.modalities, rank, world, device)
        self.average = Average(self.engine.module, job.train.ema.decay) if job.train.ema else None
        self.teacher: Answers = {}
        self.position = Position()
        self.copies: Copies = {}
        self.averages: Copies = {}
        self.telemetry = Telemetry(None, self.device)
        self.agenda = Agenda(job.train.checkpoint, rank, world, device)
        self.meter = Meter(job, self.device, world)
        self.guard = Guard(job.train.guard, self.precision)
        self.profile_steps(0, "")

    @cached_property
    def loader(self) -> Loader:
        """Makes the batches to train on, once the teacher has answered."""
        return Loader(self.stores["train"], self.plan, self.job, self.rank, self.world, self.teacher)

    @property
    def total_steps(self) -> int:
        return self.plan.steps * self.job.train.epochs

    def profile_steps(self, steps: int, run: str) -> None:
        """Look closely at so many steps; the trace goes to the run's folder."""
        self.profile = Profile(
            self.engine, steps, run, lambda text: self.telemetry.say(self.position.step, text)
        )

    def learn_from(self, teacher: str | None) -> None:
        """Ask the teacher at a URL about all training rows, if there is one."""
        if teacher:
            rows = self.stores["train"].rows
            self.teacher = teacher_answers(self.job, rows, teacher, self.rank, self.world, self.device)

    def go_on(self, run: str, say: Callable[[str], None]) -> None:
        """Continue from the newest whole checkpoint of the run at a URL, if it has one; rank 0 chooses it."""
        chosen = [newest(run, say) if self.rank == 0 else None]
        if self.world > 1:
            torch.distributed.broadcast_object_list(chosen, src=0)
        [checkpoint] = chosen
        if checkpoint is None:
            return
        with opened(checkpoint) as folder:
            self.restore(folder)
        if self.position.guard:
            self.guard.restore(self.position.guard)
        for number, metrics in enumerate(
            self.position.history, 1
        ):  # the driver may have died before it heard of all
            self._tell_validation(metrics, number, number * self.plan.steps, again=1)
        if self.rank == 0:
            say(f"going on from step {checkpoint.step} with {self.world} workers")

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, whatever the number of workers that wrote it."""
        model, moments, position = read_checkpoint(folder)
        restore_optimizer(self.engine, moments, self._empty_step)
        self._load(read_trained(folder))
        if self.average:
            self.average.restore(model)
        restore_loss_scale(self.engine, position.loss_scale)
        self.position = position

    def train(self) -> None:
        """Train the epochs that are left; each ends with validation, a report and a checkpoint."""
        if not self.position.step:
            self.begin()
        self.telemetry.record(self.position.step, {}, started=self.position.epoch)
        while self.position.epoch < self.job.train.epochs and not self.position.stopped_early:
            try:
                self.train_epoch(self.position.epoch)
                self.end_epoch()
            except RollBack as asked:
                self.roll_back(asked.verdict, asked.rows)
        self.profile.close()

    def end_epoch(self) -> None:
        """Validate, take note, and save."""
        with self.averaged():
            metrics = self.evaluator.metrics("validation")[0]
        self.position.epoch += 1
        self.position.history.append(metrics)
        self.position.stopped_early = self._early()
        self._tell_validation(metrics, self.position.epoch, self.position.step)
        self.save(metrics)

    def _tell_validation(self, metrics: dict[str, float], epoch: int, step: int, **more: int) -> None:
        self.telemetry.record(step, {f"validation/{k}": v for k, v in metrics.items()}, epoch=epoch, **more)

    def roll_back(self, verdict: Verdict, rows: Sequence[str]) -> None:
        """Go on from before the steps that the guard wants left out; every rank must call it.

        `rows` are those of the step that it did not like.
        """
        self.meter.flush()
        before = [self.saver.before(verdict.leave_out[0])] if self.saver else [None]
        if self.world > 1:
            torch.distributed.broadcast_object_list(before, src=0)
        [checkpoint] = before
        if checkpoint is None:
            raise RayfuseError(f"{verdict.error(rows)} (no checkpoint is from before it)")
        with opened(checkpoint) as folder:
            self.restore(folder)
        first, last = verdict.leave_out
        self.telemetry.say(
            checkpoint.step,
            f"{verdict.reason}{named(rows)}; back to step {checkpoint.step}, leaving out steps {first} to {last}",
        )

    def begin(self) -> None:
        """Before the first step, let adapters and alignments see some training rows, where the job wants it."""
        begun = adapter_beginnings(self.engine.module, self.precision, self.evaluator, self.world)
        if begun:
            self._load({**dict(gather_model(self.engine)), **begun})
            if self.average:
                self.average.restore(trainable_parameters(self.engine.module))
        self._standardize()

    def _standardize(self) -> None:
        """Let the alignment bring what encoders make to one scale."""
        parts = [module for module in self.engine.module.modules() if isinstance(module, Standards)]
        if not parts:
            return
        for part in parts:
            part.observe()
        self.evaluator.collect("train", most=_ROWS_OBSERVED)
        for part in parts:
            if self.world > 1:
                torch.distributed.all_reduce(part.observed)
            part.settle()

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in place of the trained ones, where the job wants them."""
        return self.average.in_place() if self.average else nullcontext()

    def train_epoch(self, epoch: int) -> None:
        """What is left of one pass over the training rows."""
        self.engine.train()
        self.telemetry.resume_clock()
        ready = self.loader.steps(epoch, self.position.epoch_step)
        for batches, rows in self.profile.watch(ready):
            if not self.guard.skips(self.position.step + 1):
                self._take_step(batches, rows, ready)
            self.position.step += 1
            self.position.epoch_step += 1
            self.watchdog.beat()
            if self.agenda.due(self.position.step) and self.position.epoch_step < self.plan.steps:
                self._look(self.meter.flush())
                self.save()
        self._look(self.meter.flush())
        self.position.epoch_step = 0

    def _take_step(self, batches: Sequence[Batch], rows: int, ready: Steps) -> None:
        """One optimizer step, measured."""
        with self.telemetry.counting(batches):
            loss, parts = self.train_step(batches, rows)
        if self.average:
            self.average.update(self.position.step + 1)
        position = self.position
        place = Place(position.epoch, position.epoch_step, position.step + 1, self._rate(position.step))
        norm = gradient_norm(self.engine)
        self._look(self.meter.put(place, batches, loss, parts, norm, ready.take()))

    def _look(self, measured: Measured | None) -> None:
        """Show a step that is measured, and do what the guard says of it."""
        if measured is None:
            return
        place = measured.place
        verdict = self.guard.look(place.step, measured.loss, measured.gradient_norm)
        if verdict.action == "roll back":
            raise RollBack(verdict, self._origins(place, measured.suspects))
        if verdict.action == "stop":
            raise verdict.error(self._origins(place, measured.suspects))
        self.telemetry.step(measured, self.plan.steps, self.job.train.epochs)

    def _origins(self, place: Place, ranks: Sequence[int]) -> list[str]:
        """FILE:LINE of the rows that some ranks had at a step."""
        rows = self.stores["train"].rows
        return [
            rows[number].origin
            for rank in ranks
            for numbers in self.plan.step(place.epoch, place.number, rank, self.world)
            for number in numbers
        ]

    def _rate(self, done: int) -> float:
        """The learning rate after `done` steps, of what has no rate of its own."""
        return self.job.train.optimizer.lr * rate_factor(self.job.train.schedule, done, self.total_steps)

    def train_step(self, batches: Sequence[Batch], rows: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One optimizer step over this rank's micro-batches of a global batch of `rows`.

        Returns the loss summed over this rank's rows, and what it is made of (`FusedModel.losses`), detached. DeepSpeed
        averages over ranks and micro-batches, while a global batch's loss is a mean over its rows: the factor turns
        one into the other. What is drawn at random depends on the seed, the step and the rank alone.
        """
        self._seed(self.position.step, self.rank)
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
        return total, parts

    def finish(self, run: str, evaluate: bool) -> dict[str, Any]:
        """What training came to, from the run's checkpoints; with `evaluate` also the soup and its evaluation."""
        best = self._best()
        with opened(best[0]) as folder:
            position, weights = read_position(folder), read_model(folder)
        outcome = {**self.outcome(position.history[-1]), "checkpoint": best[0].url}
        if not evaluate:
            return outcome
        if self.job.train.soup:
            soup = self.make_soup(_weights(best[: self.job.train.soup]))
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
            return self.evaluator.metrics("validation")[0]

        return greedy_soup(checkpoints, reached, self.goodness)

    def evaluate_best(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Put the best weights in place, for good, and evaluate them: see `Evaluator.of_best`."""
        self._load(weights)
        return self.evaluator.of_best()

    def outcome(self, best_validation: dict[str, float]) -> dict[str, Any]:
        """What training came to."""
        return {
            "steps": self.position.step,
            "best_validation": best_validation,
            "history": self.position.history,
            "precision": self.precision,
            "memory": self.memory.told(),
        }

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

    def goodness(self, metrics: Mapping[str, Any]) -> float:
        """How good validation metrics are by the one that chooses; more is better."""
        value = metrics[self.job.chosen_by]
        if value is None or value != value:
            return -math.inf
        return float(value if self.job.metrics()[self.job.chosen_by] == "max" else -value)

    def save(self, metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint, with the validation metrics at the end of an epoch; every rank gathers."""
        self.agenda.saved()
        gathered = gather_model(self.engine), gather_optimizer(self.engine)
        saver = self.saver
        if saver is None:
            deque(chain(*gathered), maxlen=0)
            return
        saver.wait()  # it writes the copies of the last one
        model, moments = (copy_to_cpu(tensors, self.copies) for tensors in gathered)
        average = copy_to_cpu(self.average.tensors.items(), self.averages) if self.average else None
        self.position.guard = self.guard.state()
        self.position.loss_scale = read_loss_scale(self.engine)
        position = deepcopy(self.position)

        def write(folder: Path) -> None:
            write_checkpoint(folder, self.job, model, moments, position, average, saver.pause)

        saver.save(position.step, metrics, write)
        if self.agenda.warned:
            saver.hurry()

    def _best(self) -> list[Checkpoint]:
        """The run's checkpoints that were validated, the best first, once the last of them is whole; rank 0 looks."""
        found: list[Any] = [self.saver.best()] if self.saver else [None]
        if self.world > 1:
            torch.distributed.broadcast_object_list(found, src=0)
        best: list[Checkpoint] = found[0]
        return best

    def _seed(self, *place: int) -> None:
        """Start all generators anew; nothing for the initial weights, step and rank for what training draws."""
        [seed] = np.random.SeedSequence([self.job.train.seed, *place]).generate_state(1).tolist()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
