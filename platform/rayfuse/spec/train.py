"""How a job is trained: optimizer, schedule, and the aids that make more of few rows."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from rayfuse.spec.base import Block, Part, Url
from rayfuse.spec.checkpointing import Checkpointing
from rayfuse.spec.deepspeed import DeepSpeed, DeepSpeedOrUrl
from rayfuse.spec.guard import Guard
from rayfuse.spec.optimizers import AdamW, Optimizer, ParameterGroup, refusal
from rayfuse.spec.schedules import Cosine, Schedule


class EarlyStopping(Block):
    metric: str
    """TASK/METRIC on the validation rows, or `loss`."""
    patience: int = Field(3, ge=1)
    """Epochs without a better value before training ends."""


Draw = Literal["random", "single", "each"]
"""Which of a row's subsets of inputs are trained on beside the whole."""


class SubsetLoss(Block):
    """A loss on subsets of each row's inputs, beside the one on all of them: encoders run once for both."""

    draw: Draw = "random"
    """`random`: one subset per row and epoch; `single`: each optional input alone; `each`: every proper subset.

    Required inputs are in every subset.
    """
    weight: float = Field(1.0, gt=0)
    """Factor of the mean loss over a row's subsets, beside 1 for the whole row."""


class Mixup(Block):
    """Manifold mixup on the fused vector (Verma et al., 2019): rows and their losses are mixed in pairs."""

    alpha: float = Field(0.2, gt=0)
    """The share of the first row of a pair is drawn from Beta(alpha, alpha)."""


class Ema(Block):
    """Exponential moving average of what is trained (Polyak and Juditsky, 1992); it is what is evaluated and kept."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Share of the old average at each step; less at first: at most (1 + step) / (10 + step)."""


class Distill(Block):
    """Learn from the answers of a larger model too (Hinton et al., 2015)."""

    teacher: Url
    """`models:/NAME/VERSION`, a model folder or the URL of one; it must know all of the job's tasks."""
    weight: float = Field(1.0, gt=0)
    """Factor of the divergence from the teacher, beside 1 for the loss on the row's own target."""
    temperature: float = Field(2.0, gt=0)
    """Outputs are divided by it before they are compared; above 1, small probabilities count more."""


_OF_ANY_LENGTH = ("text", "video", "series", "sequence")
"""Inputs whose values are padded to the longest of a batch."""


class Train(Part):
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step, over all workers and accumulated micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step: more of them need less memory."""
    group_by_length: bool = False
    """Make batches of rows of about the same length (tokens, frames, steps), so that less of them is padding."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null switches clipping off."""
    optimizer: Optimizer = AdamW()
    groups: tuple[ParameterGroup, ...] = ()
    """Rates of chosen parameters; the first pattern that a name matches counts."""
    schedule: Schedule = Cosine()
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that an optional input of a training row is left out."""
    subset_loss: SubsetLoss | None = None
    """A second loss on subsets of a row's inputs: for models that must answer without some of them."""
    mixup: Mixup | None = None
    """Train on mixtures of rows; for tasks that answer from the fused vector alone."""
    ema: Ema | None = None
    """Average the weights over the steps; evaluation and the exported model use the average."""
    soup: int | None = Field(None, ge=2, le=32)
    """Average the best of so many epochs, where that is better on validation (Wortsman et al., 2022)."""
    distill: Distill | None = None
    """Learn from a trained model too."""
    guard: Guard = Guard()
    """What to do about a loss that is no number, or that explodes."""
    early_stopping: EarlyStopping | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the hardware computes in it, else fp32."""
    deepspeed: DeepSpeedOrUrl = DeepSpeed()
    """Options, or a DeepSpeed JSON file."""
    activation_checkpointing: bool = False
    """Compute what layers of Transformers make anew in the backward pass instead of keeping it (Chen et al., 2016)."""
    checkpoint: Checkpointing = Checkpointing()
    seed: int = Field(0, ge=0)

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        optional = [name for name, options in job.inputs.items() if options.optional]
        if self.input_dropout and not optional:
            yield (
                "input_dropout",
                "no input is optional, so none can be dropped; mark one `optional: true`",
            )
        if self.subset_loss and (not optional or len(job.inputs) < 2):
            yield (
                "subset_loss",
                "no row has a proper subset of inputs to answer from: it takes two inputs, one of them optional; "
                "mark one `optional: true`",
            )
        if self.group_by_length and not any(i.type in _OF_ANY_LENGTH for i in job.inputs.values()):
            yield (
                "group_by_length",
                f"all values of its inputs are of one size; leave it out (it is for: {', '.join(_OF_ANY_LENGTH)})",
            )

    def stage_problems(self, stage: int) -> Iterable[tuple[str, str]]:
        """What does not work under a ZeRO stage, wherever the stage comes from."""
        if self.ema and stage == 3:
            yield "ema", NO_EMA
        if reason := refusal(self.optimizer, stage):
            yield "optimizer.type", reason


NO_EMA = "ZeRO stage 3 leaves no worker with whole weights to average; use train.deepspeed.stage 2 or less"
