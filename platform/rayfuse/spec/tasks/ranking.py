"""Ranking: a score that orders the candidates of a query."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayfuse.errors import InsufficientRowsError, InvalidInputError
from rayfuse.spec.base import Problems, is_missing
from rayfuse.spec.cells import CellType
from rayfuse.spec.summary import CountSummary, Summary
from rayfuse.spec.tasks.base import (
    ColumnTaskConfig,
    Mode,
    Target,
    TaskFitter,
    TaskRow,
    format_value,
)
from rayfuse.spec.tasks.numbers import hash_to_floats, to_finite_float

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput
    from rayfuse.spec.job import Job

RANKING_METRICS: dict[str, Mode] = {"loss": "min", "ndcg": "max", "mrr": "max"}


class RankingTaskConfig(ColumnTaskConfig):
    """A score that orders the candidates of a query; a row is one candidate, its column the relevance."""

    type: Literal["ranking"]
    query_column: str = Field(min_length=1)
    """Column with the query: rows with the same value are ranked against each other."""
    loss: Literal["pairwise", "listwise"] = "listwise"
    """`pairwise`: RankNet, a logistic loss of every two candidates (Burges et al., 2005). `listwise`: cross-entropy of the
    softmax over the candidates with the normalized relevance (Cao et al., 2007; Bruch et al., 2019)."""
    ndcg_at: int = Field(10, ge=1)
    """Value of k of the metric NDCG@k."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "float", self.query_column: "int"}

    @property
    def group_column(self) -> str:
        return self.query_column

    def metric_modes(self) -> dict[str, Mode]:
        return RANKING_METRICS

    def validate_in_job(self, job: "Job") -> Problems:
        if self.query_column == self.column:
            yield "query_column", f"`{self.query_column}` is also `column`, the relevance; use another column"
        others = {task.group_column for task in job.tasks.values() if task.group_column} - {self.query_column}
        if others:
            yield (
                "query_column",
                f"`{self.query_column}` differs from `{min(others)}` of another task, and batches are grouped by one "
                "column; use the same column",
            )

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        """Return [relevance, two numbers of a hash of the query]. Raises InvalidInputError if one is missing or invalid."""
        group = values.get(self.query_column)
        if is_missing(group) or isinstance(group, (list, dict)):
            raise InvalidInputError(
                f"the query (column {self.query_column}) is missing, or not a text or number"
            )
        return [self.target(values.get(self.column)), *hash_to_floats(group)]

    def target(self, value: Any) -> float:
        """Return the relevance. Raises InvalidInputError if it is not a finite number of at least 0."""
        number = to_finite_float(value)
        if number is None or number < 0:
            raise InvalidInputError(
                "the relevance is missing"
                if is_missing(value)
                else f"relevance {format_value(value)} is not a finite number of at least 0; 0 means not relevant"
            )
        return number

    def fitter(self) -> TaskFitter:
        return _OrderCheck(self)

    def summary(self, name: str) -> Summary:
        return CountSummary(
            lambda row: [str(row.values.get(self.query_column))], partial(_describe_queries, name)
        )


def _describe_queries(name: str, sizes: Counter[str]) -> list[str]:
    low, high = min(sizes.values()), max(sizes.values())
    return [f"{name}: {len(sizes)} queries in train, with {low} to {high} rows each"]


class _OrderCheck(TaskFitter):
    """Check that a query has training rows of different relevance."""

    def __init__(self, task: RankingTaskConfig) -> None:
        self._task = task
        self._relevance: dict[str, float] = {}
        self._has_order = False

    def partial_fit(self, row: TaskRow) -> None:
        number = None if self._has_order else to_finite_float(row.values.get(self._task.column))
        if number is not None:
            query = str(row.values.get(self._task.query_column))
            self._has_order = self._relevance.setdefault(query, number) != number

    def finalize(self) -> RankingTaskConfig:
        if not self._has_order:
            raise InsufficientRowsError(
                f"column `{self._task.column}`: no query (column `{self._task.query_column}`) has training rows of "
                "different relevance, so there is no order to learn; check both columns"
            )
        return self._task
