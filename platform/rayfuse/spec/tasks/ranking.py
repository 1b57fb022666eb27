"""A score by which candidates are put in order."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.tasks.base import Cell, ColumnTask, Mode, Target, TaskRow, is_absent, shown
from rayfuse.spec.tasks.numbers import finite, group_numbers

RANKING_METRICS: dict[str, Mode] = {"loss": "min", "ndcg": "max", "mrr": "max"}


class RankingTask(ColumnTask):
    """A score by which the candidates of a query are put in order; a row is one candidate, its column the relevance."""

    type: Literal["ranking"]
    group: str = Field(min_length=1)
    """Column that names the query: rows with the same value there are put in order among each other."""
    loss: Literal["pairwise", "listwise"] = "listwise"
    """`pairwise`: RankNet, a logistic loss of each two candidates (Burges et al., 2005). `listwise`: cross-entropy of the
    softmax over the candidates with their shares of the relevance (Cao et al., 2007; Bruch et al., 2019)."""
    depth: int = Field(10, ge=1)
    """The k of NDCG@k."""

    @property
    def columns(self) -> dict[str, Cell]:
        return {self.column: "number", self.group: "text"}

    @property
    def group_column(self) -> str:
        return self.group

    def metrics(self) -> dict[str, Mode]:
        return RANKING_METRICS

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.group == self.column:
            yield "group", f"column `{self.group}` cannot be both the query and the relevance"
        others = {task.group_column for task in job.tasks.values() if task.group_column} - {self.group}
        if others:
            yield (
                "group",
                f"rows of a query meet in one batch, so a job has one such column, not `{self.group}` and "
                f"`{min(others)}`",
            )

    def read(self, values: Mapping[str, Any], inputs: Mapping[str, Any]) -> Target:
        """[relevance, two numbers that stand for the query]. Raises BadInput where one is missing or wrong."""
        group = values.get(self.group)
        if is_absent(group) or isinstance(group, (list, dict)):
            raise BadInput(f"the query (column {self.group}) is missing, or no text or number")
        return [self.target(values.get(self.column)), *group_numbers(group)]

    def target(self, value: Any) -> float:
        """The relevance. Raises BadInput where it is no finite number from 0."""
        number = finite(value)
        if number is None or number < 0:
            raise BadInput(
                "the relevance is missing"
                if is_absent(value)
                else f"relevance {shown(value)} is not a finite number from 0; 0 means not relevant"
            )
        return number

    def fitted(self, rows: Sequence[TaskRow]) -> "RankingTask":
        found: dict[str, float] = {}
        for row in rows:
            number = finite(row.values.get(self.column))
            if number is not None and found.setdefault(str(row.values.get(self.group)), number) != number:
                return self
        raise DataError(
            f"column `{self.column}`: no query (column `{self.group}`) has training rows of different relevance, "
            "so there is no order to learn; is it the right column?"
        )

    def describe(self, name: str, rows: Sequence[TaskRow]) -> Iterable[str]:
        sizes = Counter(str(row.values.get(self.group)) for row in rows)
        yield (
            f"{name}: {len(sizes)} queries in train, of {min(sizes.values())} to {max(sizes.values())} rows"
        )
