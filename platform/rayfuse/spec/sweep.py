"""`kind: sweep`: search values for any part of a job."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block, Name, Seconds, Url
from rayfuse.spec.paths import is_below
from rayfuse.spec.tasks import Mode

_Values = Annotated[list[Any], Field(min_length=1)]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise PydanticCustomError("range", "a range rises from its first number to its second")
    return ends


_Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
_PositiveRange = Annotated[tuple[Annotated[float, Field(gt=0)], float], AfterValidator(_ordered)]
_IntRange = Annotated[tuple[int, int], AfterValidator(_ordered)]

_FORMS = ("choice", "grid", "uniform", "loguniform", "int")


class Parameter(Block):
    """What one node of the job may be: exactly one of choice, grid, uniform, loguniform and int."""

    choice: _Values | None = None
    """One of these values, or whole blocks, is drawn."""
    grid: _Values | None = None
    """Every one of these is tried with every value of the other grids; only with `search: {type: grid}`."""
    uniform: _Range | None = None
    """A number between the two."""
    loguniform: _PositiveRange | None = None
    """A number between the two whose logarithm is uniform."""
    when: dict[str, Any] = Field({})
    """Paths of the job and the value, or list of values, that they must have for this parameter to be searched."""
    int: _IntRange | None = None
    """A whole number from the first to the second, both included."""

    @model_validator(mode="after")
    def _one_form(self) -> "Parameter":
        given = [name for name in _FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "parameter",
                "write exactly one of {forms}; given: {given}",
                {"forms": ", ".join(_FORMS), "given": ", ".join(given) or "none", "path": "choice"},
            )
        return self

    @property
    def values(self) -> list[Any] | None:
        """All that it can be; None for a range."""
        return self.choice if self.choice is not None else self.grid

    @property
    def ends(self) -> list[Any]:
        """All that it can be, or the two ends of its range."""
        return self.values or list(self.uniform or self.loguniform or self.int or ())


class RandomSearch(Block):
    """Independent draws (Bergstra and Bengio, 2012)."""

    type: Literal["random"] = "random"
    trials: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)


class GridSearch(Block):
    """Every combination of the `grid` parameters; all others are drawn anew for each."""

    type: Literal["grid"]
    repeats: int = Field(1, ge=1)
    """Trials of each combination, which differ in what is drawn."""
    seed: int = Field(0, ge=0)


class OptunaSearch(Block):
    """Tree-structured Parzen estimator (Bergstra et al., 2011; Akiba et al., 2019): draws where results were good."""

    type: Literal["optuna"]
    trials: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)
    startup: int = Field(10, ge=1)
    """Trials drawn at random before results are used."""


Search = Annotated[RandomSearch | GridSearch | OptunaSearch, Field(discriminator="type")]


class NoScheduler(Block):
    """Every trial is trained to its end."""

    type: Literal["none"] = "none"


class AshaScheduler(Block):
    """Asynchronous successive halving (Li et al., 2020): after `grace` epochs, and each time these have been
    multiplied by `reduction`, only the best 1/`reduction` of the trials go on."""

    type: Literal["asha"]
    grace: int = Field(1, ge=1)
    reduction: float = Field(4, gt=1)


Scheduler = Annotated[NoScheduler | AshaScheduler, Field(discriminator="type")]

_NAMES = ("kind", "name", "output")
"""Parts of a job that no trial may change: they say where results go."""


class Sweep(Block):
    """Search values for any part of a job."""

    kind: Literal["sweep"]
    name: Name
    job: Url
    """The job's spec file."""
    metric: str
    """TASK/METRIC on the validation rows, or `loss`. A trial keeps, and is judged by, its best epoch."""
    mode: Mode | None = None
    """max or min; must be what is better for the metric."""
    search: Search = RandomSearch()
    scheduler: Scheduler = NoScheduler()
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Path of a node of the job (a value or a whole block) → what it may be."""
    trial: dict[str, Any] = Field({})
    """Path → value that every trial has instead of the job's, as in train.epochs: 3; the winner is trained without."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at a time; as many as the cluster has room for where absent."""
    budget: Seconds | None = None
    """Time after which no trial goes on."""

    @field_validator("space", "trial")
    @classmethod
    def _changeable(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for path in given:
            first = path.split(".")[0]
            if not all(path.split(".")):
                _refuse(path, "not a path; write a.b.c")
            if first in _NAMES:
                _refuse(path, "says where results go, and is the same for all trials")
            if first == "data" and info.field_name == "space":
                _refuse(path, "cannot be searched: trials are compared on the same rows")
        return given

    @model_validator(mode="after")
    def _said_once(self) -> "Sweep":
        for path in self.trial:
            for searched in self.space:
                if is_below(path, searched) or is_below(searched, path):
                    _refuse(f"trial.{path}", f"`{searched}` is searched; a trial cannot have both")
        return self

    @model_validator(mode="after")
    def _grids(self) -> "Sweep":
        grids = [path for path, parameter in self.space.items() if parameter.grid is not None]
        if isinstance(self.search, GridSearch) and not grids:
            _refuse("search.type", "a grid search needs a parameter with `grid`")
        if grids and not isinstance(self.search, GridSearch):
            _refuse(f"space.{grids[0]}.grid", f"search {self.search.type} draws its values; write `choice`")
        return self


def _refuse(path: str, reason: str) -> None:
    raise PydanticCustomError("sweep", "{reason}", {"reason": reason, "path": path})
