"""The training loop of a rank: resume, step, save, validate, and evaluate once on the test rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rayfuse.data.loader import BatchIterator, BatchLoader, StepBatches
from rayfuse.errors import RayfuseError
from rayfuse.spec.job import Job
from rayfuse.training.checkpoint_manager import CheckpointManager
from rayfuse.training.checkpoint_trigger import CheckpointTrigger, StopRequested
from rayfuse.training.checkpoints import Checkpoint
from rayfuse.training.data_dependent_init import initialize_from_data
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.early_stopping import TimeBudget, should_stop
from rayfuse.training.evaluator import Evaluator
from rayfuse.training.final_evaluation import FinalEvaluation
from rayfuse.training.loss_guard import LossGuard, RollbackRequested, format_rows
from rayfuse.training.memory import PeakMemory, release_free_memory
from rayfuse.training.profiler import StepProfiler
from rayfuse.training.state import TrainState
from rayfuse.training.step_metrics import MetricReducer, StepMetrics, StepPosition
from rayfuse.training.telemetry import Telemetry
from rayfuse.training.train_step import TrainStep
from rayfuse.training.training_data import TrainingData
from rayfuse.training.watchdog import Watchdog

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class EpochReporter(Protocol):
    """Receiver of the results of a run, such as Ray Train."""

    def report(self, metrics: Mapping[str, float], checkpoint_url: str | None, epoch: int, step: int) -> None:
        """Receive the validation metrics of an epoch; called on every rank when its checkpoint is being written.

        `checkpoint_url` is where the checkpoint will be complete soon, None without a run; `epoch` and `step` are the
        epochs and optimizer steps done.
        """

    def report_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Receive the complete validated checkpoints when training has ended; called on every rank."""


class NullEpochReporter:
    """Reporter that ignores all results."""

    def report(self, metrics: Mapping[str, float], checkpoint_url: str | None, epoch: int, step: int) -> None:
        """Do nothing."""

    def report_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Do nothing."""


@dataclass(kw_only=True, eq=False)
class Trainer:
    """One rank of a training run. Every rank must call each method; `build_trainer` builds one."""

    job: Job
    """The fitted job."""
    context: DistributedContext
    """Rank, world size and device."""
    precision: str
    """Precision of matrix products: bf16, fp16 or fp32."""
    engine: "DeepSpeedEngine"
    """DeepSpeed engine with the model and the optimizer."""
    data: TrainingData
    """Rows of all splits."""
    loader: BatchLoader
    """Batches of the training rows, with the teacher's outputs in a distillation."""
    train_step: TrainStep
    """The optimizer step."""
    evaluator: Evaluator
    """Metrics on a split."""
    checkpoints: CheckpointManager
    """Checkpoints of the run."""
    final_evaluation: FinalEvaluation
    """Evaluation of the best checkpoint."""
    telemetry: Telemetry
    """Metrics and messages to the driver."""
    metric_reducer: MetricReducer
    """Metrics of a step over all ranks."""
    loss_guard: LossGuard
    """Decisions on NaN losses and loss spikes."""
    checkpoint_trigger: CheckpointTrigger
    """Decisions on checkpoints inside an epoch."""
    time_budget: TimeBudget
    """Decisions on whether another epoch fits in the time budget."""
    profiler: StepProfiler
    """Trace of a few steps."""
    watchdog: Watchdog
    """End of a worker that makes no progress."""
    reporter: EpochReporter
    """Receiver of the result of each epoch."""
    peak_memory: PeakMemory
    """Peak memory of this worker."""
    state: TrainState = field(default_factory=TrainState)
    """Position in the run."""

    def run(self, log: Callable[[str], None], evaluate: bool = True) -> dict[str, Any]:
        """Resume, train, and evaluate the best checkpoint; return the summary of the run.

        With `evaluate` off, the summary has only what is known from the validation of each epoch. Raises StopRequested
        if the driver was interrupted; its checkpoint is complete then.
        """
        with self.watchdog, self.checkpoints:
            self.resume(log)
            self.train()
            return self.finish(evaluate)

    def resume(self, log: Callable[[str], None]) -> None:
        """Continue from the latest valid checkpoint of the run, if it has one."""
        state = self.checkpoints.resume(log)
        if state is None:
            return
        self.state = state
        if state.loss_guard:
            self.loss_guard.load_state_dict(state.loss_guard)
        for epoch, metrics in enumerate(
            state.history, 1
        ):  # the driver may have stopped before it received all
            self._log_validation(metrics, epoch, epoch * self.data.sampler.steps_per_epoch, replayed=1)
        if self.context.is_main:
            log(f"resuming from step {state.step} with {self.context.world_size} workers")

    def train(self) -> None:
        """Train the remaining epochs; each ends with validation, a checkpoint and a report."""
        if not self.state.step:
            initialize_from_data(self.engine, self.evaluator, self.precision, self.train_step.ema)
            release_free_memory()
        self.telemetry.log_metrics(self.state.step, {}, first_step=self.state.epoch)
        self.checkpoint_trigger.mark_saved()
        self.time_budget.start(self.state.seconds)
        while self.state.epoch < self.job.train.epochs and not self.state.stopped_early:
            try:
                self.train_epoch(self.state.epoch)
                self.end_epoch()
            except RollbackRequested as request:
                self._roll_back(request)
        self.profiler.close(self._log_text)
        self.reporter.report_checkpoints(self.checkpoints.best())

    def train_epoch(self, epoch: int) -> None:
        """Take the remaining steps of an epoch, counted from 0. Raises StopRequested after a checkpoint."""
        self.engine.train()
        self.telemetry.reset_timer()
        steps = self.loader.iter_epoch(epoch, self.state.epoch_step)
        for batches in self.profiler.wrap(steps, self._log_text):
            if not self.loss_guard.should_skip(self.state.step + 1):
                self._run_step(batches, steps)
            self.state.step += 1
            self.state.epoch_step += 1
            self.watchdog.heartbeat(self.state.step)
            self.checkpoints.raise_error()
            in_epoch = self.state.epoch_step < self.data.sampler.steps_per_epoch
            if self.checkpoint_trigger.should_save(self.state.step) and in_epoch:
                self._handle_metrics(self.metric_reducer.flush())
                self.save()
                if self.checkpoint_trigger.must_stop:
                    raise StopRequested
        self._handle_metrics(self.metric_reducer.flush())
        self.state.epoch_step = 0

    def end_epoch(self) -> None:
        """Validate, save a checkpoint, and report the epoch.

        Batches of training and of evaluation differ in size, so that neither can use what the other has freed.
        """
        release_free_memory()
        with self.train_step.averaged_weights():
            [metrics] = self.evaluator.compute_metrics("validation")
        release_free_memory()
        self.state.epoch += 1
        self.state.history.append(metrics)
        self.state.stopped_early = self._should_stop_early() or not self.time_budget.allows_epoch(
            self.state.epoch
        )
        self._log_validation(metrics, self.state.epoch, self.state.step)
        checkpoint_url = self.save(metrics)
        self.reporter.report(metrics, checkpoint_url, self.state.epoch, self.state.step)

    def save(self, metrics: dict[str, float] | None = None) -> str | None:
        """Start to write a checkpoint, with the validation metrics at the end of an epoch; return its URL."""
        self.checkpoint_trigger.mark_saved()
        self.state.loss_guard = self.loss_guard.state_dict()
        self.state.seconds = self.time_budget.spent
        return self.checkpoints.save(self.state, metrics)

    def finish(self, evaluate: bool) -> dict[str, Any]:
        """Return the summary of the run; with `evaluate`, after the final evaluation."""
        best = self.final_evaluation.run() if evaluate else self.final_evaluation.summarize_best()
        return {
            "steps": self.state.step,
            "history": self.state.history,
            "precision": self.precision,
            "memory": self.peak_memory.to_dict(),
            **best,
        }

    def _run_step(self, step: StepBatches, steps: BatchIterator) -> None:
        batches, size = step
        with self.telemetry.count_flops(batches):
            result = self.train_step.run(batches, size, self.state.step)
        state = self.state
        position = StepPosition(
            state.epoch, state.epoch_step, state.step + 1, self.train_step.learning_rate(state.step)
        )
        self._handle_metrics(
            self.metric_reducer.update(
                position,
                batches,
                result.loss,
                result.loss_terms,
                result.gradient_norm,
                steps.pop_wait_seconds(),
            )
        )

    def _handle_metrics(self, metrics: StepMetrics | None) -> None:
        """Log the metrics of a step, or roll back or stop as the loss guard decides."""
        if metrics is None:
            return
        position = metrics.position
        decision = self.loss_guard.check(position.step, metrics.loss, metrics.gradient_norm)
        if decision.action == "continue":
            self.telemetry.log_step(metrics, self.data.sampler.steps_per_epoch, self.job.train.epochs)
            return
        rows = self.data.row_origins(position, metrics.suspect_ranks, self.context.world_size)
        if decision.action == "rollback":
            raise RollbackRequested(decision, rows)
        raise decision.to_error(rows)

    def _roll_back(self, request: RollbackRequested) -> None:
        """Continue from before the steps that the loss guard skips; the guard keeps its state."""
        decision = request.decision
        self.metric_reducer.flush()
        first, last = decision.skip_steps
        state = self.checkpoints.rewind_before(first)
        if state is None:
            raise RayfuseError(
                f"{decision.to_error(request.rows)} (there is no checkpoint before step {first})"
            )
        self.state = state
        self._log_text(
            f"{decision.reason}{format_rows(request.rows)}; rolled back to step {state.step}, "
            f"skipping the batches of steps {first} to {last}"
        )

    def _should_stop_early(self) -> bool:
        stopping = self.job.train.early_stopping
        if stopping is None:
            return False
        values = [metrics[stopping.metric] for metrics in self.state.history]
        return should_stop(values, self.job.metric_modes()[stopping.metric], stopping.patience)

    def _log_validation(self, metrics: Mapping[str, float], epoch: int, step: int, **fields: int) -> None:
        named = {f"validation/{name}": value for name, value in metrics.items()}
        self.telemetry.log_metrics(step, named, epoch=epoch, **fields)

    def _log_text(self, text: str) -> None:
        self.telemetry.log_text(self.state.step, text)
