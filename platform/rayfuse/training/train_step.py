"""The optimizer step of one rank over its part of a global batch."""

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rayfuse.data.collate import Batch
from rayfuse.data.sampler import GlobalBatch
from rayfuse.spec.job import Job
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.ema import Ema
from rayfuse.training.engine import set_learning_rates, zero_learning_rates
from rayfuse.training.schedule import lr_factor
from rayfuse.training.training_spans import check_spans

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class StepResult(NamedTuple):
    """Losses and gradient norm of an optimizer step."""

    loss: torch.Tensor
    """Total loss summed over this rank's rows, float32 ()."""
    loss_terms: dict[str, torch.Tensor]
    """Losses summed over this rank's rows, by the names of `LossOutput.to_metrics`."""
    gradient_norm: torch.Tensor | float | None
    """Norm of the gradient over all ranks before clipping; None where it is not computed (ZeRO stage 0, no clipping)."""


class TrainStep:
    """Forward and backward passes, optimizer and weight average of one step.

    Random numbers of a step depend on the seed, the step and the rank alone, so that resumed runs draw the same.
    """

    def __init__(
        self,
        job: Job,
        engine: "DeepSpeedEngine",
        context: DistributedContext,
        total_steps: int,
        ema: Ema | None = None,
    ) -> None:
        """`total_steps` is the number of steps of the whole run, which the learning rate schedule spans.

        Raises SpecError if a group of `train.param_groups` is trained in none of them.
        """
        check_spans(job.train.param_groups, total_steps)
        self.job, self.engine, self.context = job, engine, context
        self.total_steps, self.ema = total_steps, ema

    def run(self, batches: Sequence[Batch], size: GlobalBatch, step: int) -> StepResult:
        """Take optimizer step `step`, counted from 0, over this rank's micro-batches of a global batch of `size`.

        DeepSpeed averages over ranks and micro-batches, while the loss of a global batch is a mean over its rows, or
        over their weights: each loss is scaled by the ratio. Sums in the result are such that their total over the ranks,
        divided by the rows, is that mean.
        """
        seed_everything(self.job.train.seed, step, self.context.rank)
        set_learning_rates(self.engine, self.job.train.schedule, step, self.total_steps)
        scale = self.context.world_size * len(batches) / size.rows
        total = torch.zeros((), device=self.context.device)
        terms: dict[str, torch.Tensor] = {}
        for batch in batches:
            moved = batch.to(self.context.device)
            losses = self.engine.module.losses(self.engine(moved), moved).scale_tasks(size.loss_factors)
            loss = self.engine.module.total_loss(losses, moved)
            self.engine.backward(loss * scale)
            self.engine.step()
            total += loss.detach().float()
            for name, term in losses.to_metrics().items():
                terms[name] = terms.get(name, 0.0) + term.detach().float()
        if self.ema:
            self.ema.update(step + 1)
        return StepResult(total, terms, self.engine.get_global_grad_norm())

    def run_noop(self, batch: Batch) -> None:
        """Take a step with gradients and a learning rate of zero; `batch` must hold filler samples only.

        DeepSpeed creates its optimizer state at the first step, so a restore takes one before it.
        """
        self.engine.train()
        zero_learning_rates(self.engine)
        moved = batch.to(self.context.device)
        for _ in range(self.job.train.gradient_accumulation_steps):
            losses = self.engine.module.losses(self.engine(moved), moved)
            self.engine.backward(self.engine.module.total_loss(losses, moved))
            self.engine.step()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has its averaged weights, in jobs with `train.ema`."""
        return self.ema.average_parameters() if self.ema else nullcontext()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0, for parameters without their own rate."""
        return self.job.train.optimizer.lr * lr_factor(self.job.train.schedule, step, self.total_steps)


def seed_everything(seed: int, *keys: int) -> None:
    """Seed Python, NumPy and PyTorch with a number derived from `seed` and `keys`."""
    [derived] = np.random.SeedSequence([seed, *keys]).generate_state(1).tolist()
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
