"""`kind: job`: train one model from rows to a registered version."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import Align, LinearAlign
from rayfuse.spec.base import (
    Block,
    Bytes,
    Key,
    Name,
    Part,
    Seconds,
    Share,
    Url,
    UrlMember,
    mapping_or_url,
)
from rayfuse.spec.cache import Cache, cache_problems
from rayfuse.spec.deepspeed import DeepSpeed
from rayfuse.spec.encoders import Lora, pretrained_in
from rayfuse.spec.fusion import Fusion
from rayfuse.spec.inputs import Input, default_columns
from rayfuse.spec.tasks import Mode, Task, with_default_columns
from rayfuse.spec.train import Train


class FractionSplit(Block):
    """A part of the training rows, chosen by a stable hash of each row."""

    fraction: float = Field(gt=0, lt=1)


FractionSplitOrUrl = Annotated[
    Annotated[FractionSplit, Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)
]


class Data(Part):
    train: Url
    """jsonl, csv or parquet: a file, a glob or a folder."""
    validation: FractionSplitOrUrl = FractionSplit(fraction=0.1)
    """Rows that choose the best checkpoint: a fraction of the training rows, or a URL."""
    test: Url | None = None
    """Rows that are looked at once, after training."""
    max_bad_rows: Share = 0.01
    """Share of rows that may be unusable before the run stops."""
    cache: Cache = "auto"
    """Folder for the outputs of frozen encoders, which then run once for each distinct value of their input instead of
    once an epoch. `auto`: `cache` in output.storage; inputs with `augment` are left out. `off`: they run every time."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from cache_problems(job)


def _workers(value: Any) -> Any:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not whole or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise PydanticCustomError(
            "workers", "not a number of workers; write 4, or [1, 8] for from 1 to 8 as the cluster has room"
        )
    return value if isinstance(value, int) else numbers


_COUNT = {"type": "integer", "minimum": 1}
Workers = Annotated[
    int | tuple[int, int],
    BeforeValidator(_workers),
    WithJsonSchema({"anyOf": [_COUNT, {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2}]}),
]
"""A number of workers, or the fewest and the most."""


class Compute(Block):
    workers: Workers = 1
    """A number, or [FEWEST, MOST]: then training grows and shrinks with the cluster, from its last checkpoint."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)
    """How often training goes on from its last checkpoint after a worker dies; a node that is taken away is not
    counted."""
    hang_timeout: Seconds | None = Field(1800.0, gt=0)
    """Longest time without progress, after which the workers start anew; null: they may take for ever."""
    resize_interval: Seconds = Field(60.0, gt=0)
    """How often a run of [FEWEST, MOST] workers looks whether it can have more."""
    data_processes: int = Field(0, ge=0, le=64)
    """Processes of each worker that decode rows while it trains; 0: a thread of the worker does."""
    prefetch: int = Field(2, ge=1, le=64)
    """Steps whose batches are made ahead."""
    keep_samples: Bytes = 1_000_000_000
    """Memory of each worker for decoded rows of each split; what does not fit is decoded each time."""

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Output(Block):
    storage: Url
    """Folder for checkpoints, logs and the exported model."""
    model: Name | None = None
    """Registered name; the job's name where absent."""
    tracking: Url | None = None
    """MLflow server or database; MLFLOW_TRACKING_URI, else a database in `storage`."""
    tensorboard: bool = False
    """Write event files for TensorBoard beside the run too."""


class Job(Block):
    """Train one model from rows to a registered version."""

    kind: Literal["job"]
    name: Name
    data: Data
    inputs: Annotated[dict[Key, Input], Field(min_length=1), BeforeValidator(default_columns)]
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

    def align_of(self, name: str) -> Align:
        """How an input is brought to the common width."""
        return self.inputs[name].align or self.align

    def stage_problems(self, stage: int) -> Iterable[tuple[str, str]]:
        """What does not work under a ZeRO stage, wherever the stage comes from: fields, and why."""
        yield from ((f"train.{where}", reason) for where, reason in self.train.stage_problems(stage))
        for name, options in self.inputs.items():
            for path, encoder in pretrained_in(options.encoder):
                if isinstance(encoder.adapter, Lora):
                    place = ".".join(["inputs", name, "encoder", *path, "lora"])
                    yield from (
                        (f"{place}.{where}", reason)
                        for where, reason in encoder.adapter.stage_problems(stage)
                    )

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
        yield "data", self.data
        for name, options in self.inputs.items():
            yield f"inputs.{name}", options
            yield f"inputs.{name}.encoder", options.encoder
            if options.align:
                yield f"inputs.{name}.align", options.align
        yield "align", self.align
        yield from ((f"align.loss.{i}", loss) for i, loss in enumerate(self.align.loss))
        yield "fusion", self.fusion
        yield from ((f"tasks.{name}", task) for name, task in self.tasks.items())
        yield "train", self.train

    def _check_own_alignment(self, path: str, own: Align | None) -> None:
        if own and own.dim != self.align.dim:
            _refuse(f"{path}.dim", f"{own.dim}, but align.dim is {self.align.dim}, the width of all inputs")
        if own and own.loss:
            _refuse(f"{path}.loss", "losses draw inputs together; write them under `align` of the job")

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
        if isinstance(self.train.deepspeed, DeepSpeed):
            for path, reason in self.stage_problems(self.train.deepspeed.stage):
                _refuse(path, reason)
        for name, options in self.inputs.items():
            self._check_own_alignment(f"inputs.{name}.align", options.align)
        micro_batches = self.compute.most * self.train.accumulate
        if self.train.batch_size < micro_batches:
            _refuse(
                "train.batch_size",
                f"{self.train.batch_size} is less than compute.workers × train.accumulate = {micro_batches}",
            )
        shared = {c for i in self.inputs.values() for c in i.columns_read} & {
            t.target_column for t in self.tasks.values()
        }
        if shared:
            _refuse(
                "tasks", f"column `{sorted(shared)[0]}` is an input and a target; a model would just copy it"
            )
        return self


def _refuse(path: str, reason: str) -> None:
    raise PydanticCustomError("job", "{reason}", {"reason": reason, "path": path})
