"""Build the Trainer of a rank with all its collaborators."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from rayfuse.data.loader import BatchLoader
from rayfuse.data.rows import Row
from rayfuse.spec.job import Job
from rayfuse.training.checkpoint_manager import CheckpointManager
from rayfuse.training.checkpoint_trigger import CheckpointTrigger
from rayfuse.training.distillation import compute_teacher_outputs
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.early_stopping import TimeBudget
from rayfuse.training.ema import Ema
from rayfuse.training.engine import build_engine, create_model
from rayfuse.training.evaluator import Evaluator
from rayfuse.training.final_evaluation import FinalEvaluation
from rayfuse.training.loss_guard import LossGuard
from rayfuse.training.memory import PeakMemory, job_libraries, limit_kernel_caches
from rayfuse.training.precision import choose_precision
from rayfuse.training.profiler import StepProfiler
from rayfuse.training.step_metrics import MetricReducer
from rayfuse.training.telemetry import Telemetry
from rayfuse.training.train_step import TrainStep, seed_everything
from rayfuse.training.trainer import EpochReporter, NullEpochReporter, Trainer
from rayfuse.training.training_data import TrainingData
from rayfuse.training.watchdog import Watchdog

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Monitors(TypedDict, total=False):
    """Collaborators that a caller may replace."""

    telemetry: Telemetry
    """Receiver of metrics and messages; by default they are discarded."""
    checkpoint_trigger: CheckpointTrigger
    """Decisions on checkpoints inside an epoch; by default those of the job's `train.checkpoint`."""
    watchdog: Watchdog
    """End of a worker that makes no progress; by default there is none."""
    reporter: EpochReporter
    """Receiver of the result of each epoch; by default it is discarded."""


class _Core(TypedDict):
    engine: "DeepSpeedEngine"
    train_step: TrainStep
    evaluator: Evaluator
    checkpoints: CheckpointManager
    final_evaluation: FinalEvaluation
    peak_memory: PeakMemory


def build_trainer(
    job: Job,
    splits: Mapping[str, Sequence[Row]],
    deepspeed_config: Mapping[str, Any],
    context: DistributedContext | None = None,
    *,
    run: str | None = None,
    teacher_url: str | None = None,
    profile_steps: int = 0,
    log: Callable[[str], None] = print,
    **monitors: Unpack[Monitors],
) -> Trainer:
    """Build the trainer of a rank; every rank must call it in the same way.

    `deepspeed_config` is what `load_deepspeed_config` returns; `context` is that of a single worker by default. `run`
    is the URL of the folder for checkpoints, without which none are written; `teacher_url` the model folder of a
    teacher; `profile_steps` the number of steps to profile on rank 0.
    """
    limit_kernel_caches()
    context = context or DistributedContext()
    precision, _ = choose_precision(job.train.precision, context.device)
    data = TrainingData.prepare(job, splits, context, precision, log)
    core = _build_core(job, data, deepspeed_config, context, precision, run)
    return Trainer(
        job=job,
        context=context,
        precision=precision,
        data=data,
        loader=_build_loader(job, data, context, teacher_url),
        metric_reducer=MetricReducer(job, context.device, context.world_size),
        loss_guard=LossGuard(job.train.loss_guard, precision),
        time_budget=TimeBudget(job.train.time_budget, context),
        profiler=StepProfiler(core["engine"], profile_steps if run and context.is_main else 0, run or ""),
        **core,
        **_default_monitors(job, context, monitors),
    )


def _build_core(
    job: Job,
    data: TrainingData,
    deepspeed_config: Mapping[str, Any],
    context: DistributedContext,
    precision: str,
    run: str | None,
) -> _Core:
    """Build the engine and all that uses it; peak memory counts from before the model is built."""
    seed_everything(job.train.seed)
    peak_memory = PeakMemory(context.device, job_libraries(job))
    model = create_model(job, deepspeed_config, context.world_size, precision)
    engine = build_engine(job, model, deepspeed_config, context.world_size, precision)
    ema = Ema(engine.module, job.train.ema.decay) if job.train.ema else None
    train_step = TrainStep(job, engine, context, data.sampler.steps_per_epoch * job.train.epochs, ema)
    evaluator = Evaluator(job, engine, data, context)

    def run_noop_step() -> None:
        train_step.run_noop(data.empty_batch())

    checkpoints = CheckpointManager(job, engine, context, run_noop_step, ema, run)
    return _Core(
        engine=engine,
        train_step=train_step,
        evaluator=evaluator,
        checkpoints=checkpoints,
        final_evaluation=FinalEvaluation(job, engine, context, evaluator, checkpoints, run),
        peak_memory=peak_memory,
    )


def _default_monitors(job: Job, context: DistributedContext, monitors: Monitors) -> dict[str, Any]:
    return {
        "telemetry": monitors.get("telemetry") or Telemetry(None, context.device),
        "checkpoint_trigger": monitors.get("checkpoint_trigger")
        or CheckpointTrigger(job.train.checkpoint, context),
        "watchdog": monitors.get("watchdog") or Watchdog(None),
        "reporter": monitors.get("reporter") or NullEpochReporter(),
    }


def _build_loader(
    job: Job, data: TrainingData, context: DistributedContext, teacher_url: str | None
) -> BatchLoader:
    samples = data.sample_caches["train"]
    outputs = compute_teacher_outputs(job, samples.rows, teacher_url, context) if teacher_url else {}
    return BatchLoader(samples, data.sampler, job, context.rank, context.world_size, outputs)
