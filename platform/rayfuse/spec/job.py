"""`kind: job`: train one model from rows to a registered version."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import Align, LinearAlign
from rayfuse.spec.base import (
    Block,
    Key,
    Name,
    NotBuiltYet,
    Part,
    Share,
    Url,
    UrlMember,
    mapping_or_url,
    not_built_yet,
)
from rayfuse.spec.fusion import Fusion
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import Mode, Task, with_default_columns


class FractionSplit(Block):
    """A part of the training rows, chosen by a stable hash of each row."""

    fraction: float = Field(gt=0, lt=1)


FractionSplitOrUrl = Annotated[
    Annotated[FractionSplit, Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)
]


class Data(Block):
    train: Url
    """jsonl, csv or parquet: a file, a glob or a folder."""
    validation: FractionSplitOrUrl = FractionSplit(fraction=0.1)
    """Rows that choose the best checkpoint: a fraction of the training rows, or a URL."""
    test: Url | None = None
    """Rows that are looked at once, after training."""
    max_bad_rows: Share = 0.01
    """Share of rows that may be unusable before the run stops."""


class AdamW(Block):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    lr: float = Field(1.0e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Schedule(Block):
    """Learning rate over the steps: linear warm-up, then cosine to zero or constant."""

    type: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.05
    """Share of all steps in which the rate rises from zero."""


class EarlyStopping(Block):
    metric: str
    """TASK/METRIC on the validation rows, or `loss`."""
    patience: int = Field(3, ge=1)
    """Epochs without a better value before training ends."""


class DeepSpeed(Block):
    stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is divided among the workers (Rajbhandari et al., 2020)."""
    offload: NotBuiltYet = None
    """Keep optimizer state or parameters in host memory or on disk."""


DeepSpeedOrUrl = Annotated[Annotated[DeepSpeed, Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)]


class Train(Part):
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step, over all workers and accumulated micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step: more of them need less memory."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null switches clipping off."""
    optimizer: AdamW = AdamW()
    schedule: Schedule = Schedule()
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that an optional input of a training row is left out."""
    early_stopping: EarlyStopping | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the hardware computes in it, else fp32."""
    deepspeed: DeepSpeedOrUrl = DeepSpeed()
    """Options, or a DeepSpeed JSON file."""
    seed: int = Field(0, ge=0)


def _fixed_workers(value: Any) -> Any:
    return not_built_yet(value) if isinstance(value, list) else value


class Compute(Block):
    workers: Annotated[int, Field(ge=1), BeforeValidator(_fixed_workers)] = 1
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)
    """How often training goes on from its last checkpoint after a worker dies."""


class Output(Block):
    storage: Url
    """Folder for checkpoints, logs and the exported model."""
    model: Name | None = None
    """Registered name; the job's name where absent."""
    tracking: Url | None = None
    """MLflow server or database; MLFLOW_TRACKING_URI, else a database in `storage`."""


def _default_columns(value: Any) -> Any:
    """An input reads the column of its own name unless it says otherwise."""
    if not isinstance(value, dict):
        return value
    return {k: {"column": k, **v} if isinstance(v, dict) else v for k, v in value.items()}


class Job(Block):
    """Train one model from rows to a registered version."""

    kind: Literal["job"]
    name: Name
    data: Data
    inputs: Annotated[dict[Key, Input], Field(min_length=1), BeforeValidator(_default_columns)]
    """The key is the input's name in rows and in HTTP requests."""
    align: Align = LinearAlign()
    fusion: Fusion
    tasks: Annotated[dict[Key, Task], Field(min_length=1), BeforeValidator(with_default_columns)]
    train: Train = Train()
    compute: Compute = Compute()
    output: Output

    @property
    def registered_name(self) -> str:
        return self.output.model or self.name

    def metrics(self) -> dict[str, Mode]:
        """Every metric that this job reports, and whether more or less of it is better."""
        named = {
            f"{name}/{metric}": mode
            for name, task in self.tasks.items()
            for metric, mode in task.metrics().items()
        }
        return {"loss": "min", **named}

    @property
    def chosen_by(self) -> str:
        """The validation metric that chooses the best checkpoint."""
        return self.train.early_stopping.metric if self.train.early_stopping else "loss"

    def _parts(self) -> Iterable[tuple[str, Part]]:
        for name, options in self.inputs.items():
            yield f"inputs.{name}", options
            yield f"inputs.{name}.encoder", options.encoder
        yield "align", self.align
        yield "fusion", self.fusion
        yield from ((f"tasks.{name}", task) for name, task in self.tasks.items())
        yield "train", self.train

    @model_validator(mode="after")
    def _check(self) -> "Job":
        if self.chosen_by not in self.metrics():
            _refuse(
                "train.early_stopping.metric",
                f"no task reports `{self.chosen_by}`; one of: {', '.join(self.metrics())}",
            )
        for path, part in self._parts():
            for where, reason in part.problems(self):
                _refuse(f"{path}.{where}", reason)
        micro_batches = self.compute.workers * self.train.accumulate
        if self.train.batch_size < micro_batches:
            _refuse(
                "train.batch_size",
                f"{self.train.batch_size} is less than compute.workers × train.accumulate = {micro_batches}",
            )
        shared = {i.column for i in self.inputs.values()} & {t.target_column for t in self.tasks.values()}
        if shared:
            _refuse(
                "tasks", f"column `{sorted(shared)[0]}` is an input and a target; a model would just copy it"
            )
        if self.train.input_dropout and not any(i.optional for i in self.inputs.values()):
            _refuse(
                "train.input_dropout",
                "no input is optional, so none can be dropped; mark one `optional: true`",
            )
        return self


def _refuse(path: str, reason: str) -> None:
    raise PydanticCustomError("job", "{reason}", {"reason": reason, "path": path})
