"""Spec of a sweep: search values for any part of a job."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Name, Seconds, Spec, SpecModel, resolve_url
from rayfuse.spec.paths import is_below
from rayfuse.spec.tasks import Mode

_Values = Annotated[list[Any], Field(min_length=1)]


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise PydanticCustomError("range", "not a range; write [LOWEST, HIGHEST], the lower end first")
    return ends


_Range = Annotated[tuple[float, float], AfterValidator(_check_range)]
_PositiveRange = Annotated[tuple[Annotated[float, Field(gt=0)], float], AfterValidator(_check_range)]
_IntRange = Annotated[tuple[int, int], AfterValidator(_check_range)]

_DISTRIBUTIONS = ("choice", "grid", "uniform", "loguniform", "int")


class Parameter(SpecModel):
    """Values of one node of the job: exactly one of choice, grid, uniform, loguniform and int."""

    choice: _Values | None = None
    """Values, or whole blocks, one of which is drawn."""
    grid: _Values | None = None
    """Values that are tried in every combination with other grids; only with `search: {type: grid}`."""
    uniform: _Range | None = None
    """Range of a number that is drawn uniformly."""
    loguniform: _PositiveRange | None = None
    """Range of a number whose logarithm is drawn uniformly."""
    when: dict[str, Any] = Field({})
    """Condition: paths of the job → the value, or list of values, with which this parameter is searched."""
    int: _IntRange | None = None
    """Range of an integer that is drawn uniformly, both ends included."""

    @model_validator(mode="after")
    def _check_one_distribution(self) -> "Parameter":
        given = [name for name in _DISTRIBUTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "parameter",
                "write exactly one of {forms}; found: {given}",
                {"forms": ", ".join(_DISTRIBUTIONS), "given": ", ".join(given) or "none", "path": "choice"},
            )
        return self

    @property
    def values(self) -> list[Any] | None:
        """All its values; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def boundary_values(self) -> list[Any]:
        """All its values, or the ends of its range; with a number between integral ends, which is no integer."""
        if self.values:
            return self.values
        if self.int is not None:
            return list(self.int)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        is_integral = low.is_integer() and high.is_integer()
        return [low, high, low + (high - low) / math.pi] if is_integral else [low, high]


class RandomSearch(SpecModel):
    """Independent draws (Bergstra and Bengio, 2012)."""

    type: Literal["random"] = "random"
    """Kind of search."""
    trials: int = Field(10, ge=1)
    """Number of trials."""
    seed: int = Field(0, ge=0)
    """Seed of what is drawn."""


class GridSearch(SpecModel):
    """Every combination of the `grid` parameters; the others are drawn for each of them."""

    type: Literal["grid"]
    """Kind of search."""
    repeats: int = Field(1, ge=1)
    """Trials of each combination, which differ in what is drawn."""
    seed: int = Field(0, ge=0)
    """Seed of what is drawn."""


class OptunaSearch(SpecModel):
    """Tree-structured Parzen estimator (Bergstra et al., 2011) of Optuna (Akiba et al., 2019)."""

    type: Literal["optuna"]
    """Kind of search."""
    trials: int = Field(10, ge=1)
    """Number of trials."""
    seed: int = Field(0, ge=0)
    """Seed of what is drawn."""
    n_startup_trials: int = Field(10, ge=1)
    """Random trials before the estimator is used; at most a third of the trials."""


Search = Annotated[RandomSearch | GridSearch | OptunaSearch, Field(discriminator="type")]


class NoScheduler(SpecModel):
    """Every trial is trained to its end."""

    type: Literal["none"] = "none"
    """Kind of scheduler."""


class AshaScheduler(SpecModel):
    """Asynchronous successive halving (Li et al., 2020).

    After `grace_period` epochs, and each time these have been multiplied by `reduction_factor`, only the best
    1/`reduction_factor` of the trials continue.
    """

    type: Literal["asha"]
    """Kind of scheduler."""
    grace_period: int = Field(1, ge=1)
    """Epochs before a trial can be stopped."""
    reduction_factor: float = Field(4, gt=1)
    """Ratio of trials that are stopped, and of epochs between decisions."""


Scheduler = Annotated[NoScheduler | AshaScheduler, Field(discriminator="type")]

_FIXED_SECTIONS = ("kind", "name", "output")
"""Sections of a job that no trial may change, as they decide where results are stored."""


def _validate_job(value: Any, info: ValidationInfo) -> str | Spec:
    if isinstance(value, str) and value:
        return resolve_url(value, info)
    if isinstance(value, Spec) and getattr(value, "kind", None) == "job":
        return value
    raise PydanticCustomError("job", "not a job; write the path of its spec file, or in Python pass a Job")


def _serialize_job(value: str | Spec, info: SerializationInfo) -> Any:
    if isinstance(value, Spec):
        return value.model_dump(mode=info.mode, exclude_unset=info.exclude_unset)
    return value


class Sweep(Spec):
    """Search values for any part of a job."""

    kind: Literal["sweep"]
    """Kind of spec."""
    name: Name
    """Name of the sweep."""
    job: Annotated[
        str | Spec,
        PlainValidator(_validate_job),
        PlainSerializer(_serialize_job),
        WithJsonSchema({"type": "string", "minLength": 1}),
    ]
    """Spec file of the job."""
    metric: str
    """TASK/METRIC on the validation rows, or `loss`. The best epoch of a trial counts."""
    mode: Mode | None = None
    """`max` or `min`; by default the metric's own mode, from which it must not differ."""
    search: Search = Field(default_factory=RandomSearch)
    """Search algorithm."""
    scheduler: Scheduler = Field(default_factory=NoScheduler)
    """Scheduler that stops trials early."""
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Path of a node of the job (a value or a whole block) → its possible values."""
    trial_overrides: dict[str, Any] = Field({})
    """Path → value that every trial has instead of the job's, as in train.epochs: 3. They do not apply to the winner."""
    concurrency: int | None = Field(None, ge=1)
    """Concurrent trials; by default as many as the cluster has resources for."""
    time_budget: Seconds | None = Field(None, gt=0)
    """Time after which all trials are stopped."""

    @field_validator("space", "trial_overrides")
    @classmethod
    def _check_paths(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for path in given:
            first = path.split(".")[0]
            if not all(path.split(".")):
                _reject(path, "not a path; write a.b.c")
            if first in _FIXED_SECTIONS:
                _reject(path, "is the same for all trials; remove it")
            if first == "data" and info.field_name == "space":
                _reject(path, "cannot be searched, as trials are compared on the same rows; remove it")
        return given

    @model_validator(mode="after")
    def _check_no_overlap(self) -> "Sweep":
        for path in self.trial_overrides:
            for searched in self.space:
                if is_below(path, searched) or is_below(searched, path):
                    _reject(
                        f"trial_overrides.{path}", f"`{searched}` is also in `space`; remove one of the two"
                    )
        return self

    @model_validator(mode="after")
    def _check_grids(self) -> "Sweep":
        grids = [path for path, parameter in self.space.items() if parameter.grid is not None]
        if isinstance(self.search, GridSearch) and not grids:
            _reject("search.type", "grid needs a parameter with `grid`; add one, or use random")
        if grids and not isinstance(self.search, GridSearch):
            _reject(f"space.{grids[0]}.grid", f"not supported by search {self.search.type}; use `choice`")
        return self


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("sweep", "{reason}", {"reason": reason, "path": path})
