"""The jobs that a sweep may try: its values put into the job, and every combination checked before a trial starts."""

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.load import check, folder_of, load_spec, read_spec, substitute
from rayfuse.spec.paths import ABSENT, get_at, is_below, set_at
from rayfuse.spec.problems import describe
from rayfuse.spec.sweep import GridSearch, Parameter, Sweep
from rayfuse.spec.tasks import Mode
from rayfuse.spec.train import EarlyStopping

Values = dict[str, Any]
"""Path of a searched node → the value that a trial has there; without those whose `when` does not hold."""

Pick = Callable[[str, Parameter], Any]

MOST_CHECKED = 10_000
"""Combinations that are checked one by one; of a larger space, every pair of values is."""

_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Space:
    """A sweep and the job that it varies, both checked."""

    sweep: Sweep
    job: Job
    """As the job's file has it."""
    content: dict[str, Any]
    """The same as people write it, before defaults."""
    folder: str
    """What relative paths of the job count from."""

    @property
    def mode(self) -> Mode:
        return self.job.metrics()[self.sweep.metric]

    def draw(self, pick: Pick) -> Values:
        """Values for one trial: `pick` is asked for each parameter whose `when` holds, in order."""
        content, values = copy.deepcopy(self.content), Values()
        for path, parameter in _in_order(self.sweep.space):
            if self._applies(content, parameter):
                values[path] = pick(path, parameter)
                set_at(content, path, copy.deepcopy(values[path]))
        return values

    def trial_job(self, values: Mapping[str, Any]) -> Job:
        """What a trial with these values trains; no test rows, because validation chooses."""
        job = self.winner(values, self.sweep.trial)
        return job.model_copy(update={"data": job.data.model_copy(update={"test": None})})

    def winner(self, values: Mapping[str, Any], trial: Mapping[str, Any] | None = None) -> Job:
        """The whole job with these values; its best epoch is chosen by the sweep's metric.

        Raises SpecError where the values do not fit.
        """
        where = f"{self.sweep.name}: {shown(values)}"
        job = check(self._with({**(trial or {}), **values}), Job, where, self.folder)
        patience = job.train.early_stopping.patience if job.train.early_stopping else job.train.epochs
        stopping = EarlyStopping(metric=self.sweep.metric, patience=patience)
        return job.model_copy(update={"train": job.train.model_copy(update={"early_stopping": stopping})})

    def grid(self) -> list[Values]:
        """Every combination of the `grid` parameters, in order; each once, whatever `when` leaves out."""
        cells = self._branches(lambda parameter: parameter.grid)
        return list({json.dumps(cell, sort_keys=True): cell for cell in cells}.values())

    def combinations(self) -> Iterator[Values]:
        """Every combination of listed values and ends of ranges."""
        return self._branches(lambda parameter: parameter.ends)

    def size(self) -> int:
        """At most how many combinations there are."""
        return math.prod(len(parameter.ends) for parameter in self.sweep.space.values())

    def problems(self) -> list[str]:
        """What is wrong with any combination, as `path of the sweep: problem; the values`."""
        found: dict[str, str] = {}
        for values in self._to_check():
            for path, problem in self._problems_of(values):
                found.setdefault(f"{self._place(path)}: {problem}", shown(values))
        return [f"{problem} (with {values})" for problem, values in found.items()]

    def _problems_of(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Of the trial and of the winner that these values make."""
        for fixed in [{}, self.sweep.trial] if self.sweep.trial else [{}]:
            try:
                Job.model_validate(self._with({**fixed, **values}), context={"base": self.folder})
            except ValidationError as error:
                for line in describe(error, Job):
                    path, _, problem = line.partition(": ")
                    yield path, problem
            except ValueError as error:
                yield next(reversed(dict(values)), ""), str(error)

    def _to_check(self) -> Iterable[Values]:
        return self.combinations() if self.size() <= MOST_CHECKED else self._pairs()

    def _pairs(self) -> Iterator[Values]:
        """Each pair of values of two parameters, all others at their first."""
        parameters = list(self.sweep.space)
        for first in parameters:
            for second in parameters:
                varied = {first, second}
                yield from self._branches(lambda p, v=varied: p.ends, varied)  # type: ignore[misc]

    def _branches(
        self, options: Callable[[Parameter], list[Any] | None], varied: set[str] | None = None
    ) -> Iterator[Values]:
        """Every way to give each parameter one of its options; those without options are left out."""

        def branch(
            rest: list[tuple[str, Parameter]], content: dict[str, Any], values: Values
        ) -> Iterator[Values]:
            if not rest:
                yield values
                return
            (path, parameter), *others = rest
            found = options(parameter) if self._applies(content, parameter) else None
            if not found:
                yield from branch(others, content, values)
                return
            for value in found if varied is None or path in varied else found[:1]:
                changed = copy.deepcopy(content)
                try:
                    set_at(changed, path, copy.deepcopy(value))
                except ValueError:  # said when the combination is checked
                    yield {**values, path: value}
                    continue
                yield from branch(others, changed, {**values, path: value})

        return branch(_in_order(self.sweep.space), self.content, {})

    def _applies(self, content: dict[str, Any], parameter: Parameter) -> bool:
        """Whether the conditions of a parameter hold; what nobody wrote has its default."""
        return all(_is_one_of(self._node(content, path), wanted) for path, wanted in parameter.when.items())

    def _node(self, content: dict[str, Any], path: str) -> Any:
        found = get_at(content, path)
        if found is not ABSENT:
            return found
        try:
            return get_at(Job.model_validate(content, context={"base": self.folder}).model_dump(), path)
        except ValidationError:  # reported when the combination is checked
            return ABSENT

    def _with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        content = copy.deepcopy(self.content)
        for path, value in values.items():
            set_at(content, path, copy.deepcopy(value))
        return content

    def _place(self, path: str) -> str:
        """Where in the sweep a problem at `path` of the job comes from."""
        for block, given in (("space", self.sweep.space), ("trial", self.sweep.trial)):
            around = [known for known in given if is_below(path, known)]
            inside = [known for known in given if is_below(known, path)]
            if around:
                return f"{block}.{path}"
            if inside:
                return f"{block}.{inside[0]}"
        return f"space: {path}" if path else "space"


def load_sweep(
    source: str | Path, overrides: Iterable[str] = (), environment: Mapping[str, str] = os.environ
) -> Space:
    """Read a sweep's file and its job's, and check every combination as a job.

    Raises SpecError with the path in the sweep: for a wrong value, a metric that no task reports, a node that a
    job does not have.
    """
    where = str(source)
    sweep = load_spec(source, Sweep, overrides, environment)
    content = substitute(read_spec(sweep.job, Job), environment, sweep.job)
    folder = folder_of(sweep.job)
    space = Space(sweep, check(content, Job, sweep.job, folder), content, folder)
    problems = list(_wrong_metric(space)) or space.problems() or list(_wrong_conditions(space))
    if problems:
        raise SpecError("\n".join(f"{where}: {problem}" for problem in _most(problems)))
    return space


def shown(values: Mapping[str, Any]) -> str:
    """Values in a line, for people: numbers with four digits, a block by its `type` where that says all."""
    return ", ".join(f"{path}={show(value)}" for path, value in values.items()) or "no values"


def show(value: Any) -> str:
    """One value, for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = [str(v) if k == "type" else f"{k}={show(v)}" for k, v in value.items()]
        return "{" + " ".join(parts) + "}" if len(parts) > 1 else "".join(parts)
    return json.dumps(value) if isinstance(value, (list, bool)) or value is None else str(value)


def _most(problems: list[str]) -> list[str]:
    left = len(problems) - _PROBLEMS_SHOWN
    return problems if left <= 0 else [*problems[:_PROBLEMS_SHOWN], f"… and {left} more like these"]


def _wrong_metric(space: Space) -> Iterator[str]:
    known = space.job.metrics()
    if space.sweep.metric not in known:
        yield f"metric: no task reports `{space.sweep.metric}`; one of: {', '.join(known)}"
    elif space.sweep.mode not in (None, space.mode):
        better = {"max": "more", "min": "less"}[space.mode]
        yield f"mode: {better} {space.sweep.metric} is better; write {space.mode}, or leave it out"


def _wrong_conditions(space: Space) -> Iterator[str]:
    """Conditions that never hold would silently take a parameter out of the search."""
    used = {path for values in space._to_check() for path in values}
    for path in space.sweep.space:
        if path not in used:
            yield f"space.{path}.when: never holds; its paths are those of the job, as in fusion.type"


def _is_one_of(found: Any, wanted: Any) -> bool:
    return bool(found in wanted if isinstance(wanted, list) else found == wanted)


def _in_order(space: Mapping[str, Parameter]) -> list[tuple[str, Parameter]]:
    """Parameters as written, but each after those that it depends on: the block it is in, and what its `when` asks."""
    left, ordered = dict(space), list[tuple[str, Parameter]]()
    while left:
        ready = [path for path, parameter in left.items() if not _needs(path, parameter, left)]
        path = ready[0] if ready else next(iter(left))  # a circle: as written
        ordered.append((path, left.pop(path)))
    return ordered


def _needs(path: str, parameter: Parameter, left: Mapping[str, Parameter]) -> bool:
    asked = [path, *parameter.when]
    return any(other != path and any(is_below(one, other) for one in asked) for other in left)


def draws(space: Space) -> int:
    """How many trials the sweep wants."""
    search = space.sweep.search
    return len(space.grid()) * search.repeats if isinstance(search, GridSearch) else search.trials
