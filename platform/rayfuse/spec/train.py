"""Training options: optimizer, schedule, regularization, distillation and precision."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfuse.spec.base import JobSection, Problems, Seconds, SpecModel, Url
from rayfuse.spec.checkpointing import CheckpointingConfig
from rayfuse.spec.deepspeed import DeepSpeedConfig, DeepSpeedConfigOrUrl
from rayfuse.spec.inputs import INPUTS
from rayfuse.spec.loss_guard import LossGuardConfig
from rayfuse.spec.optimizers import AdamWConfig, OptimizerConfig, ParamGroupConfig, zero_incompatibility
from rayfuse.spec.schedules import CosineScheduleConfig, ScheduleConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class EarlyStoppingConfig(SpecModel):
    """Early stopping on a validation metric, which also selects the best checkpoint."""

    metric: str
    """TASK/METRIC on the validation rows, or `loss`."""
    patience: int = Field(3, ge=1)
    """Epochs without improvement after which training ends."""


SubsetSampling = Literal["random", "single", "each"]
"""Subsets of a row's inputs to train on, in addition to all of them."""


class SubsetLossConfig(SpecModel):
    """A loss on subsets of each row's inputs, in addition to all of them; encoders run once for both."""

    sampling: SubsetSampling = "random"
    """`random`: one subset per row and epoch; `single`: each optional input alone; `each`: every proper subset.

    Every subset contains the required inputs.
    """
    weight: float = Field(1.0, gt=0)
    """Factor of the mean loss over a row's subsets, relative to the loss on all inputs."""


class MixupConfig(SpecModel):
    """Manifold mixup on the fused vector (Verma et al., 2019): rows and their losses are mixed in pairs."""

    alpha: float = Field(0.2, gt=0)
    """The weight of the first row of a pair is drawn from Beta(alpha, alpha)."""


class EmaConfig(SpecModel):
    """Exponential moving average of the trained weights (Polyak and Juditsky, 1992), for evaluation and the saved model."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Weight of the old average at each step; at most (1 + step) / (10 + step)."""


class DistillationConfig(SpecModel):
    """Knowledge distillation from the predictions of a trained model (Hinton et al., 2015)."""

    teacher: Url
    """`models:/NAME/VERSION`, a model folder or the URL of one; it must have all of the job's tasks."""
    weight: float = Field(1.0, gt=0)
    """Factor of the divergence from the teacher, relative to the loss on the row's target."""
    temperature: float = Field(2.0, gt=0)
    """Divisor of outputs before they are compared; above 1, small probabilities count more."""


class TrainConfig(JobSection):
    """Training options of a job."""

    epochs: int = Field(10, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step, over all workers and micro-batches."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step; more of them use less memory."""
    group_by_length: bool = False
    """Batch rows of similar length (tokens, frames, steps), for less padding."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient, to which it is clipped; null: no clipping."""
    optimizer: OptimizerConfig = Field(default_factory=AdamWConfig)
    """Optimizer with its learning rate."""
    param_groups: tuple[ParamGroupConfig, ...] = ()
    """Learning rates of chosen parameters; the first pattern that matches a name applies."""
    schedule: ScheduleConfig = Field(default_factory=CosineScheduleConfig)
    """Learning rate schedule."""
    modality_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that an optional input of a training row is dropped."""
    subset_loss: SubsetLossConfig | None = None
    """Additional loss on subsets of a row's inputs, for predictions without some of them."""
    mixup: MixupConfig | None = None
    """Train on mixtures of rows; for tasks that predict from the fused vector alone."""
    ema: EmaConfig | None = None
    """Average the weights over the steps; evaluation and the saved model use the average."""
    model_soup: int | None = Field(None, ge=2, le=32)
    """Average the weights of this many best epochs if it is better on validation rows (Wortsman et al., 2022)."""
    distillation: DistillationConfig | None = None
    """Learn from the predictions of a trained model, too."""
    loss_guard: LossGuardConfig = Field(default_factory=LossGuardConfig)
    """Action on NaN losses and loss spikes."""
    load_best_model_at_end: bool = True
    """Use the weights of the best epoch on the validation rows; false: those of the last epoch, as few validation rows
    select one nearly at random."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop training when a validation metric no longer improves."""
    time_budget: Seconds | None = Field(None, gt=0)
    """Training time, such as 10m, over all resumes: no epoch begins that would probably end later; null: no limit."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 if the hardware supports it, else fp32."""
    deepspeed: DeepSpeedConfigOrUrl = Field(default_factory=DeepSpeedConfig)
    """ZeRO stage and offloading, or a DeepSpeed JSON file."""
    activation_checkpointing: bool = False
    """Recompute activations of transformer layers in the backward pass instead of storing them (Chen et al., 2016)."""
    checkpoint: CheckpointingConfig = Field(default_factory=CheckpointingConfig)
    """Schedule and retention of checkpoints."""
    seed: int = Field(0, ge=0)
    """Seed of the weights, the order of rows, and augmentation."""

    def validate_in_job(self, job: "Job") -> Problems:
        optional = [name for name, options in job.inputs.items() if options.optional]
        if self.modality_dropout and not optional:
            yield (
                "modality_dropout",
                f"{self.modality_dropout:g} needs an optional input; mark one `optional: true`",
            )
        if self.subset_loss and (not optional or len(job.inputs) < 2):
            yield (
                "subset_loss",
                "needs two inputs, one of them optional; mark one `optional: true`",
            )
        if self.model_soup and not self.load_best_model_at_end:
            yield (
                "load_best_model_at_end",
                "false uses the last epoch, and model_soup averages the best ones; leave one of them out",
            )
        if self.group_by_length and not any(source.pads_to_longest for source in job.inputs.values()):
            padded = [name for name, config in INPUTS.items() if config.pads_to_longest]
            yield (
                "group_by_length",
                f"true needs an input of variable length ({', '.join(padded)}); leave it out",
            )

    def validate_zero_stage(self, stage: int) -> Problems:
        """Yield an error for each option that does not work under a ZeRO stage."""
        if self.ema and stage == 3:
            yield "ema", EMA_ZERO3_ERROR
        if reason := zero_incompatibility(self.optimizer, stage):
            yield "optimizer.type", reason


EMA_ZERO3_ERROR = "ema needs whole weights, which ZeRO stage 3 shards; use train.deepspeed.stage 2 or less"
"""Error message for the moving average under ZeRO stage 3."""
