"""`kind: job`: train one model from rows to a registered version."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import Align, LinearAlign
from rayfuse.spec.base import Block, Key, Name, Part, Share, Url, UrlMember, mapping_or_url, not_built_yet
from rayfuse.spec.cache import Cache, cache_problems
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
        yield "align", self.align
        yield from ((f"align.loss.{i}", loss) for i, loss in enumerate(self.align.loss))
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
