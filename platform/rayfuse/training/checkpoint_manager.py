"""Save and restore the full state of a run: weights, optimizer, average and position."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from rayfuse.spec.job import Job
from rayfuse.training.checkpoints import (
    AsyncCheckpointer,
    Checkpoint,
    LogFn,
    checkpoint_url,
    latest_valid_checkpoint,
    open_checkpoint,
)
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.ema import Ema
from rayfuse.training.optimizer_state import (
    gather_optimizer_state,
    load_engine_weights,
    restore_optimizer_state,
)
from rayfuse.training.state import (
    HostBuffers,
    TrainState,
    copy_to_cpu,
    gather_model,
    read_checkpoint,
    read_loss_scale,
    read_model,
    read_raw_weights,
    restore_loss_scale,
    write_checkpoint,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class CheckpointManager:
    """Checkpoints of one run. Every rank must call each method; rank 0 writes and chooses for all.

    Without a run, nothing is written, and state is gathered only.
    """

    def __init__(
        self,
        job: Job,
        engine: "DeepSpeedEngine",
        context: DistributedContext,
        run_noop_step: Callable[[], None],
        ema: Ema | None = None,
        run: str | None = None,
    ) -> None:
        """`run` is the URL of the run's folder; `run_noop_step` takes an optimizer step that changes nothing."""
        self._job, self._engine, self._context, self._ema, self._run = job, engine, context, ema, run
        self._run_noop_step = run_noop_step
        self._model_buffers: HostBuffers = {}
        self._ema_buffers: HostBuffers = {}
        self._checkpointer: AsyncCheckpointer | None = None
        if run is not None and context.is_main:
            retention = job.train.checkpoint.retention_for(job.train.model_soup)
            self._checkpointer = AsyncCheckpointer(run, retention, self.score)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        with self._checkpointer or nullcontext():
            pass

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the value of the job's selection metric, negated where less is better; -inf for NaN."""
        value = metrics[self._job.selection_metric]
        if value is None or value != value:
            return -math.inf
        return float(value if self._job.metric_modes()[self._job.selection_metric] == "max" else -value)

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> str | None:
        """Start to write a checkpoint, with the validation metrics at the end of an epoch; return its URL.

        Waits until the checkpoint before it is complete, because both use the same host memory.
        """
        gathered = gather_model(self._engine), gather_optimizer_state(self._engine)
        if self._checkpointer is None:
            deque(chain(*gathered), maxlen=0)
        else:
            self._write(self._checkpointer, gathered, state, metrics)
        return checkpoint_url(self._run, state.step) if self._run is not None else None

    def wait(self) -> None:
        """Return when the last checkpoint is complete; raise the error that stopped it."""
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def raise_error(self) -> None:
        """Raise the error of a checkpoint that could not be written, if any, without waiting."""
        if self._checkpointer is not None:
            self._checkpointer.raise_error()

    def resume(self, log: LogFn) -> TrainState | None:
        """Restore the latest valid checkpoint of the run; return its position, or None without a checkpoint."""
        checkpoint = None
        if self._run is not None and self._context.is_main:
            checkpoint = latest_valid_checkpoint(self._run, log)
        checkpoint = self._context.broadcast(checkpoint)
        return self._open_and_restore(checkpoint) if checkpoint else None

    def rewind_before(self, step: int) -> TrainState | None:
        """Restore the latest checkpoint with fewer than `step` steps and remove later ones; None without a checkpoint."""
        checkpoint = self._checkpointer.rewind_before(step) if self._checkpointer else None
        checkpoint = self._context.broadcast(checkpoint)
        return self._open_and_restore(checkpoint) if checkpoint else None

    def best(self) -> list[Checkpoint]:
        """Return the validated checkpoints of the run when the last one is complete, those to use first.

        These are the best, or the last with `load_best_model_at_end: false`.
        """
        found = self._checkpointer.best_checkpoints() if self._checkpointer else []
        if not self._job.train.load_best_model_at_end:
            found.sort(key=lambda checkpoint: checkpoint.step, reverse=True)
        return self._context.broadcast(found)

    def restore(self, folder: Path) -> TrainState:
        """Restore the checkpoint in a local folder, whatever the number of workers and the ZeRO stage that wrote it."""
        model, optimizer, state = read_checkpoint(folder)
        restore_optimizer_state(self._engine, optimizer, self._run_noop_step)
        load_engine_weights(self._engine, read_raw_weights(folder))
        if self._ema:
            self._ema.restore(model)
        restore_loss_scale(self._engine, state.loss_scale)
        return state

    def _open_and_restore(self, checkpoint: Checkpoint) -> TrainState:
        with open_checkpoint(checkpoint) as folder:
            return self.restore(folder)

    def _write(
        self,
        checkpointer: AsyncCheckpointer,
        gathered: tuple[Iterator[tuple[str, torch.Tensor]], Iterator[tuple[str, torch.Tensor]]],
        state: TrainState,
        metrics: dict[str, float] | None,
    ) -> None:
        checkpointer.wait()  # it reads the buffers that are overwritten next
        model, optimizer = (copy_to_cpu(tensors, self._model_buffers) for tensors in gathered)
        ema = copy_to_cpu(self._ema.tensors.items(), self._ema_buffers) if self._ema else None
        copied = deepcopy(state)
        copied.loss_scale = read_loss_scale(self._engine)

        def write(folder: Path) -> None:
            write_checkpoint(folder, self._job, model, optimizer, copied, ema)

        checkpointer.save(copied.step, metrics, write)


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the weights to evaluate of a checkpoint by name, with their average in runs with `train.ema`."""
    with open_checkpoint(checkpoint) as folder:
        return read_model(folder)
