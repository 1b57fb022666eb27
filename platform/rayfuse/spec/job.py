"""Spec of a job: train one model from rows to a registered version."""

from collections.abc import Iterator
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

from rayfuse.spec.align import AlignConfig, LinearAlignConfig
from rayfuse.spec.base import (
    Bytes,
    Fraction,
    JobSection,
    Key,
    Name,
    Problems,
    Seconds,
    Spec,
    SpecModel,
    Url,
)
from rayfuse.spec.cells import CellFormat
from rayfuse.spec.deepspeed import DeepSpeedConfig
from rayfuse.spec.encoders import PretrainedModelConfig, iter_pretrained_encoders
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.feature_cache import FeatureCache, validate_feature_cache
from rayfuse.spec.fusion import ConcatFusionConfig, FusionConfig
from rayfuse.spec.inputs import ChatInput, Input, default_columns
from rayfuse.spec.inputs.chat import with_replies
from rayfuse.spec.rows import InMemoryRows, Rows, is_table
from rayfuse.spec.shared_encoders import validate_shared_encoders, with_shared_encoders
from rayfuse.spec.speech_windows import with_speech_windows
from rayfuse.spec.tasks import Mode, TaskConfig, with_default_columns
from rayfuse.spec.train import TrainConfig


class FractionSplit(SpecModel):
    """A fraction of the training rows, selected by a stable hash of each row."""

    fraction: float = Field(gt=0, lt=1)
    """Fraction of the rows, between 0 and 1."""


def _fraction_or_rows(value: Any) -> str:
    return "url" if isinstance(value, (str, list, tuple, InMemoryRows)) or is_table(value) else "mapping"


FractionSplitOrRows = Annotated[
    Annotated[FractionSplit, Tag("mapping")] | Annotated[Rows, Tag("url")], Discriminator(_fraction_or_rows)
]


ColumnName = Annotated[str, Field(min_length=1)]
"""Name of a column."""
_SPLIT_OPTIONS = ("stratify", "group", "time")


class DataConfig(JobSection, CellFormat):
    """The rows of a job."""

    train: Rows
    """Data files of any supported format: a file, a glob, a folder or a list of these."""
    validation: FractionSplitOrRows = Field(default_factory=lambda: FractionSplit(fraction=0.1))
    """Rows that select the best checkpoint: a fraction of the training rows, or a URL."""
    test: FractionSplitOrRows | None = None
    """Rows for a single evaluation after training: a fraction of the training rows, or a URL."""
    stratify: Literal[True] | ColumnName | None = None
    """Column of which each fraction has the same share of every value; `true`: the target of the only task."""
    group: ColumnName | None = None
    """Column whose equal values, such as those of one patient, are never in two fractions; also with `stratify`."""
    time: ColumnName | None = None
    """Column of a number or an ISO 8601 time: the newest rows are the test rows, those before them the validation rows."""
    folds: int | None = Field(None, ge=2, le=100)
    """Cross-validation: number of parts of the training rows, each of which is tested by a model of the others."""
    fold: int | None = Field(None, ge=1)
    """The one of the `folds` to train, from 1; by default all of them, and then the registered model on all rows."""
    max_bad_rows: Fraction = 0.01
    """Fraction of invalid rows above which the run stops."""
    feature_cache: FeatureCache = "auto"
    """Folder for the outputs of frozen encoders, which then run once for each distinct value of their input instead of
    once per epoch. `auto`: `cache` in output.storage, for inputs without `augment`. `off`: no cache."""

    @property
    def fractions(self) -> dict[str, float]:
        """Fraction of the training rows in each split that is held out from them."""
        test = FractionSplit(fraction=1 / self.folds) if self.folds and self.fold else self.test
        splits = {"validation": self.validation, "test": test}
        return {name: split.fraction for name, split in splits.items() if isinstance(split, FractionSplit)}

    def of_fold(self, fold: int) -> "DataConfig":
        """Return the options to train one fold."""
        return self.model_copy(update={"fold": fold})

    def validate_in_job(self, job: "Job") -> Problems:
        yield from validate_feature_cache(job)
        yield from self._validate_folds()
        yield from self._validate_fractions(job)

    def _validate_folds(self) -> Problems:
        if self.fold and not self.folds:
            yield "fold", "the number of folds is missing; add data.folds"
        elif self.fold and self.folds and self.fold > self.folds:
            yield "fold", f"{self.fold} is above data.folds, {self.folds}; use 1 to {self.folds}"
        if self.folds and isinstance(self.test, FractionSplit):
            yield (
                "test.fraction",
                "cannot be combined with data.folds, of which each is tested; remove one of them",
            )
        if self.folds and self.time:
            yield (
                "folds",
                "would train on rows that are newer than the test rows; use `test: {fraction: 0.2}` with data.time",
            )

    def _validate_fractions(self, job: "Job") -> Problems:
        fractions = self.of_fold(1).fractions
        total = sum(fractions.values())
        if total >= 1:
            yield (
                "validation.fraction" if self.folds else "test.fraction",
                f"validation and test are {total:g} of the rows; leave some to train on",
            )
        given = [name for name in _SPLIT_OPTIONS if getattr(self, name)]
        if self.time and len(given) > 1:
            yield "time", f"cannot be combined with data.{given[0]}; use one of them"
        if given and not fractions:
            yield given[0], "validation and test are separate rows; use `validation: {fraction: 0.1}`"
        if self.stratify is True and (len(job.tasks) > 1 or not next(iter(job.tasks.values())).target_column):
            yield "stratify", "`true` is the target of the only task of a job; write the name of a column"


def _parse_workers(value: Any) -> Any:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    integers = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not integers or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise PydanticCustomError(
            "workers",
            "not a number of workers; write 4, or [1, 8] for 1 to 8, as many as the cluster has resources for",
        )
    return value if isinstance(value, int) else numbers


_COUNT = {"type": "integer", "minimum": 1}
Workers = Annotated[
    int | tuple[int, int],
    BeforeValidator(_parse_workers),
    WithJsonSchema({"anyOf": [_COUNT, {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2}]}),
]
"""A number of workers, or [MIN, MAX]."""


class ComputeConfig(SpecModel):
    """Workers and their resources."""

    workers: Workers = 1
    """A number, or [MIN, MAX] for elastic training, which resizes with the cluster and resumes from its last checkpoint."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores reserved for each worker."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs reserved for each worker; 0 trains on the CPU."""
    max_failures: int = Field(3, ge=0)
    """Number of restarts from the last checkpoint after a worker dies; preempted nodes are not counted."""
    hang_timeout: Seconds | None = Field(1800.0, gt=0)
    """Time without progress after which the workers restart; null: no limit."""
    resize_interval: Seconds = Field(60.0, gt=0)
    """Interval at which an elastic run checks whether it can grow."""
    data_workers: int = Field(0, ge=0, le=64)
    """Processes of each worker that decode rows while it trains; 0: a thread of the worker."""
    decode: Literal["workers", "cluster"] = "workers"
    """Place where rows are decoded: on the cores of the workers, or on all CPUs of the cluster with Ray Data."""
    prefetch_steps: int = Field(2, ge=1, le=64)
    """Steps whose batches are prepared ahead."""
    sample_cache: Bytes = 1_000_000_000
    """Memory of each worker for decoded rows of each split; rows that do not fit are decoded again in each epoch."""
    disk_cache: Bytes = Field(10_000_000_000, gt=0)
    """Disk of each machine for files inside rows of parquet; if they are larger, rows are shuffled in windows that fit."""

    @model_validator(mode="after")
    def _check_decode(self) -> "ComputeConfig":
        if self.decode == "cluster" and self.data_workers:
            _reject(
                "data_workers",
                f"{self.data_workers} processes of a worker do not decode rows with `decode: cluster`; leave it out",
            )
        return self

    @property
    def min_workers(self) -> int:
        """Smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class OutputConfig(SpecModel):
    """Storage of runs, MLflow tracking and the registered model."""

    storage: Url = "runs"
    """Folder for checkpoints, logs and the trained model; by default `runs` next to the spec's file."""
    registered_model: Name | None = None
    """Name of the registered model; by default the job's name."""
    tracking_uri: Url | None = None
    """MLflow server or database; by default MLFLOW_TRACKING_URI, else a database in `storage`."""
    experiment: str | None = Field(None, min_length=1, max_length=250)
    """MLflow experiment of the run, or of the trials of a sweep; by default the job's name."""
    tensorboard: bool = False
    """Write event files for TensorBoard, too."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_default_storage(cls, content: Any) -> Any:
        return {"storage": "runs", **content} if isinstance(content, dict) else content


class Job(Spec):
    """Train one model from rows to a registered version."""

    kind: Literal["job"]
    """Kind of spec."""
    name: Name
    """Name of the job, and by default of the registered model."""
    data: DataConfig
    """Training, validation and test rows."""
    inputs: Annotated[dict[Key, Input], Field(min_length=1), BeforeValidator(default_columns)]
    """Inputs by name, which is also their name in HTTP requests."""
    align: AlignConfig = Field(default_factory=LinearAlignConfig)
    """Projection of the encoded inputs to a common width."""
    fusion: FusionConfig = ConcatFusionConfig(type="concat")
    """Fusion of the aligned inputs."""
    tasks: Annotated[dict[Key, TaskConfig], Field(min_length=1), BeforeValidator(with_default_columns)]
    """Prediction tasks, by name."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Training options."""
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    """Workers and their resources."""
    output: OutputConfig = Field(default_factory=OutputConfig)
    """Storage of runs, MLflow tracking and the registered model."""

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, content: Any) -> Any:
        """Add an output, encoders that inputs share, clip lengths of speech models, and which dialogues have the reply."""
        if not isinstance(content, dict):
            return content
        return with_replies(with_shared_encoders(with_speech_windows({"output": {}, **content})))

    @property
    def registered_model_name(self) -> str:
        """Name of the registered model."""
        return self.output.registered_model or self.name

    @property
    def experiment_name(self) -> str:
        """Name of the MLflow experiment."""
        return self.output.experiment or self.name

    def split_columns(self) -> dict[str, str]:
        """Return the columns by which rows are held out, by the option of `data` that names each."""
        columns = {name: getattr(self.data, name) for name in _SPLIT_OPTIONS}
        if columns["stratify"] is True:
            columns["stratify"] = next(iter(self.tasks.values())).target_column
        return {name: column for name, column in columns.items() if column}

    def align_of(self, name: str) -> AlignConfig:
        """Return how an input is projected to the common width."""
        return self.inputs[name].align or self.align

    def pretrained_models(self) -> Iterator[tuple[tuple[str, ...], PretrainedModelConfig]]:
        """Yield the pretrained models of encoders and tasks, each with the keys of its block."""
        for name, source in self.inputs.items():
            if source.shares_encoder is None:
                for path, encoder in iter_pretrained_encoders(source.encoder):
                    yield ("inputs", name, "encoder", *path), encoder
        for name, task in self.tasks.items():
            if isinstance(task, PretrainedModelConfig):
                yield ("tasks", name), task

    def validate_zero_stage(self, stage: int) -> Problems:
        """Yield the path and message of each option that does not work under a ZeRO stage."""
        yield from ((f"train.{where}", reason) for where, reason in self.train.validate_zero_stage(stage))
        for path, options in self.pretrained_models():
            yield from (
                (".".join([*path, where]), reason) for where, reason in options.validate_zero_stage(stage)
            )

    def metric_modes(self) -> dict[str, Mode]:
        """Return every metric that the job reports, each with its mode."""
        named = {
            f"{name}/{metric}": mode
            for name, task in self.tasks.items()
            for metric, mode in task.metric_modes().items()
        }
        return {"loss": "min", **named}

    @property
    def selection_metric(self) -> str:
        """The validation metric that selects the best checkpoint."""
        return self.train.early_stopping.metric if self.train.early_stopping else "loss"

    def _sections(self) -> Iterator[tuple[str, JobSection]]:
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

    def _check_input_align(self, path: str, own: AlignConfig | None) -> None:
        if own and own.dim != self.align.dim:
            _reject(
                f"{path}.dim",
                f"{own.dim} is not align.dim {self.align.dim}, the width of all inputs; use {self.align.dim}",
            )
        if own and own.loss:
            _reject(f"{path}.loss", "a single input has no alignment losses; set them in `align` of the job")

    @model_validator(mode="after")
    def _check(self) -> "Job":
        if self.selection_metric not in self.metric_modes():
            _reject(
                "train.early_stopping.metric",
                f"no task reports `{self.selection_metric}`; "
                f"{suggest_nearest(self.selection_metric, list(self.metric_modes()))}",
            )
        for path, reason in validate_shared_encoders(self.inputs):
            _reject(path, reason)
        for path, part in self._sections():
            for where, reason in part.validate_in_job(self):
                _reject(f"{path}.{where}", reason)
        if isinstance(self.train.deepspeed, DeepSpeedConfig):
            for path, reason in self.validate_zero_stage(self.train.deepspeed.stage):
                _reject(path, reason)
        for name, options in self.inputs.items():
            self._check_input_align(f"inputs.{name}.align", options.align)
        micro_batches = self.compute.max_workers * self.train.gradient_accumulation_steps
        if self.train.batch_size < micro_batches:
            _reject(
                "train.batch_size",
                f"{self.train.batch_size} is less than compute.workers × train.gradient_accumulation_steps = "
                f"{micro_batches}; use {micro_batches} or more",
            )
        with_reply = {i.column for i in self.inputs.values() if isinstance(i, ChatInput) and i.with_reply}
        shared = {c for i in self.inputs.values() for c in i.source_columns} & {
            t.target_column for t in self.tasks.values()
        } - with_reply
        if shared:
            _reject(
                "tasks",
                f"column `{sorted(shared)[0]}` is both an input and a target; use another column for one",
            )
        return self


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("job", "{reason}", {"reason": reason, "path": path})
