"""Search space of a sweep: values applied to the job, and every combination validated before a trial starts."""

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
from rayfuse.spec.error_messages import locate_errors, suggest_nearest
from rayfuse.spec.job import Job
from rayfuse.spec.load import folder_of, load_spec, read_spec, validate_spec
from rayfuse.spec.paths import ABSENT, get_at, is_below, set_at
from rayfuse.spec.sweep import GridSearch, Parameter, Sweep
from rayfuse.spec.tasks import Mode
from rayfuse.spec.train import EarlyStoppingConfig
from rayfuse.spec.variables import substitute

Values = dict[str, Any]
"""Path of a searched node → its value in a trial; without those whose `when` is false."""

SampleParameter = Callable[[str, Parameter], Any]
"""Draws a value for the parameter at a path."""

MAX_CHECKED_COMBINATIONS = 10_000
"""Largest number of combinations that are all validated; of a larger space, every pair of values is."""

_MAX_REPORTED_ERRORS = 10


@dataclass(frozen=True)
class SearchSpace:
    """A sweep and its job, both validated."""

    sweep: Sweep
    """The sweep."""
    job: Job
    """The job of the job's file."""
    content: dict[str, Any]
    """Content of the job's file, without defaults."""
    folder: str
    """Folder that relative paths of the job are resolved against."""

    @property
    def mode(self) -> Mode:
        """Mode of the sweep's metric."""
        return self.job.metric_modes()[self.sweep.metric]

    def sample(self, sample_parameter: SampleParameter) -> Values:
        """Return values for one trial, drawn in order for each parameter whose `when` is true."""
        content, values = copy.deepcopy(self.content), Values()
        for path, parameter in _dependency_order(self.sweep.space):
            if self._applies(content, parameter):
                values[path] = sample_parameter(path, parameter)
                set_at(content, path, copy.deepcopy(values[path]))
        return values

    def trial_job(self, values: Mapping[str, Any]) -> Job:
        """Return the job of a trial with these values; without test rows, as validation rows select the winner.

        A fraction of the training rows stays held out for the test of the winner.
        """
        job = self.build_job(values, self.sweep.trial_overrides)
        if "test" in job.data.fractions:
            return job
        return job.model_copy(update={"data": job.data.model_copy(update={"test": None})})

    def build_job(self, values: Mapping[str, Any], trial_overrides: Mapping[str, Any] | None = None) -> Job:
        """Return the job with these values; the sweep's metric selects its best epoch.

        Raises SpecError if the values are invalid.
        """
        where = f"{self.sweep.name}: {format_values(values)}"
        job = validate_spec(
            self._apply_values({**(trial_overrides or {}), **values}), Job, where, self.folder
        )
        patience = job.train.early_stopping.patience if job.train.early_stopping else job.train.epochs
        stopping = EarlyStoppingConfig(metric=self.sweep.metric, patience=patience)
        return job.model_copy(update={"train": job.train.model_copy(update={"early_stopping": stopping})})

    def grid(self) -> list[Values]:
        """Return every combination of the `grid` parameters, in order and without duplicates."""
        cells = self._expand(lambda parameter: parameter.grid)
        return list({json.dumps(cell, sort_keys=True): cell for cell in cells}.values())

    def combinations(self) -> Iterator[Values]:
        """Iterate over every combination of listed values and ends of ranges."""
        return self._expand(lambda parameter: parameter.boundary_values)

    def max_combinations(self) -> int:
        """Return an upper bound of the number of combinations."""
        return math.prod(len(parameter.boundary_values) for parameter in self.sweep.space.values())

    def validate_combinations(self) -> list[str]:
        """Return the errors of all combinations, as `path in the sweep: error (with values)`."""
        found: dict[str, str] = {}
        for values in self._combinations_to_check():
            for path, problem in self._validate_combination(values):
                parameter = self.sweep.space.get(path)
                if parameter and not parameter.values and problem.startswith("must be an integer"):
                    problem = "must be an integer; write `int: [LOWEST, HIGHEST]`"
                found.setdefault(f"{self._locate(path)}: {problem}", format_values(values))
        return [f"{problem} (with {values})" for problem, values in found.items()]

    def _validate_combination(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the errors of the trial and of the winner with these values."""
        for fixed in [{}, self.sweep.trial_overrides] if self.sweep.trial_overrides else [{}]:
            try:
                Job.model_validate(self._apply_values({**fixed, **values}), context={"base": self.folder})
            except ValidationError as error:
                yield from locate_errors(error, Job)
            except ValueError as error:
                yield next(reversed(dict(values)), ""), str(error)

    def _combinations_to_check(self) -> Iterable[Values]:
        return self.combinations() if self.max_combinations() <= MAX_CHECKED_COMBINATIONS else self._pairs()

    def _pairs(self) -> Iterator[Values]:
        """Yield every pair of values of two parameters, with all others at their first."""
        parameters = list(self.sweep.space)
        for first in parameters:
            for second in parameters:
                varied = {first, second}
                yield from self._expand(lambda p, v=varied: p.boundary_values, varied)  # type: ignore[misc]

    def _expand(
        self, options: Callable[[Parameter], list[Any] | None], varied: set[str] | None = None
    ) -> Iterator[Values]:
        """Iterate over every assignment of options to parameters; those without options are left out."""

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
                except ValueError:  # reported when the combination is validated
                    yield {**values, path: value}
                    continue
                yield from branch(others, changed, {**values, path: value})

        return branch(_dependency_order(self.sweep.space), self.content, {})

    def _applies(self, content: dict[str, Any], parameter: Parameter) -> bool:
        """Return whether the conditions of a parameter are true, with defaults for missing nodes."""
        return all(_is_one_of(self._node(content, path), wanted) for path, wanted in parameter.when.items())

    def _node(self, content: dict[str, Any], path: str) -> Any:
        found = get_at(content, path)
        if found is not ABSENT:
            return found
        try:
            return get_at(Job.model_validate(content, context={"base": self.folder}).model_dump(), path)
        except ValidationError:  # reported when the combination is validated
            return ABSENT

    def _apply_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        content = copy.deepcopy(self.content)
        for path, value in values.items():
            set_at(content, path, copy.deepcopy(value))
        return content

    def _locate(self, path: str) -> str:
        """Return the path in the sweep that caused an error at `path` of the job."""
        for block, given in (("space", self.sweep.space), ("trial_overrides", self.sweep.trial_overrides)):
            around = [known for known in given if is_below(path, known)]
            inside = [known for known in given if is_below(known, path)]
            if around:
                return f"{block}.{path}"
            if inside:
                return f"{block}.{inside[0]}"
        return f"space: {path}" if path else "space"


def load_sweep(
    source: str | Path,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> SearchSpace:
    """Load a sweep and its job, and validate every combination as a job.

    Raises SpecError with the path in the sweep: for an invalid value, a metric that no task reports, or a node that the
    job does not have.
    """
    return search_space(load_spec(source, Sweep, overrides, environment), str(source), environment)


def search_space(
    sweep: Sweep, where: str = "Sweep", environment: Mapping[str, str] = os.environ
) -> SearchSpace:
    """Combine a sweep with its job, and validate every combination as a job. Raises SpecError as `load_sweep` does.

    `where` is the file of the sweep, for errors.
    """
    space = _with_job(sweep, environment)
    problems = (
        list(_validate_metric(space))
        or space.validate_combinations()
        or list(_validate_conditions(space))
        or list(_validate_folds(space))
    )
    if problems:
        raise SpecError("\n".join(f"{where}: {problem}" for problem in _truncate_errors(problems)))
    return space


def _with_job(sweep: Sweep, environment: Mapping[str, str]) -> SearchSpace:
    if isinstance(sweep.job, Job):
        content = sweep.job.model_dump(exclude_unset=True)
        return SearchSpace(sweep, sweep.job, content, str(Path.cwd()))
    assert isinstance(sweep.job, str)
    content = substitute(read_spec(sweep.job, Job), environment, sweep.job)
    folder = folder_of(sweep.job)
    return SearchSpace(sweep, validate_spec(content, Job, sweep.job, folder), content, folder)


def format_values(values: Mapping[str, Any]) -> str:
    """Return values in one line: numbers with four digits, a block without other keys as its `type`."""
    return ", ".join(f"{path}={format_value(value)}" for path, value in values.items()) or "no values"


def format_value(value: Any) -> str:
    """Return one value as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = [str(v) if k == "type" else f"{k}={format_value(v)}" for k, v in value.items()]
        return "{" + " ".join(parts) + "}" if len(parts) > 1 else "".join(parts)
    return json.dumps(value) if isinstance(value, (list, bool)) or value is None else str(value)


def _truncate_errors(problems: list[str]) -> list[str]:
    left = len(problems) - _MAX_REPORTED_ERRORS
    return problems if left <= 0 else [*problems[:_MAX_REPORTED_ERRORS], f"… and {left} more"]


def _validate_metric(space: SearchSpace) -> Iterator[str]:
    known = space.job.metric_modes()
    if space.sweep.metric not in known:
        yield f"metric: no task reports `{space.sweep.metric}`; {suggest_nearest(space.sweep.metric, list(known))}"
    elif space.sweep.mode not in (None, space.mode):
        better = {"max": "higher", "min": "lower"}[space.mode]
        yield f"mode: {better} {space.sweep.metric} is better; write {space.mode}, or leave it out"


def _validate_folds(space: SearchSpace) -> Iterator[str]:
    """Yield an error if each trial would be trained on several splits."""
    data = space.trial_job(next(iter(space.combinations()))).data
    if data.folds and not data.fold:
        yield (
            f"job: data.folds: a trial is trained on one split, not on {data.folds}; add `trial_overrides: {{data.fold: 1}}`, "
            "and the job of the best trial is trained on all folds"
        )


def _validate_conditions(space: SearchSpace) -> Iterator[str]:
    """Yield an error for each condition that is never true."""
    used = {path for values in space._combinations_to_check() for path in values}
    for path in space.sweep.space:
        if path not in used:
            yield f"space.{path}.when: never true; its paths are those of the job, as in fusion.type"


def _is_one_of(found: Any, wanted: Any) -> bool:
    return bool(found in wanted if isinstance(wanted, list) else found == wanted)


def _dependency_order(space: Mapping[str, Parameter]) -> list[tuple[str, Parameter]]:
    """Return parameters as written, but each after those that it depends on: its block, and the paths of its `when`."""
    left, ordered = dict(space), list[tuple[str, Parameter]]()
    while left:
        ready = [path for path, parameter in left.items() if not _has_unmet_dependency(path, parameter, left)]
        path = ready[0] if ready else next(iter(left))  # a cycle: as written
        ordered.append((path, left.pop(path)))
    return ordered


def _has_unmet_dependency(path: str, parameter: Parameter, left: Mapping[str, Parameter]) -> bool:
    needed = [path, *parameter.when]
    return any(other != path and any(is_below(one, other) for one in needed) for other in left)


def num_trials(space: SearchSpace) -> int:
    """Return the number of trials of a sweep."""
    search = space.sweep.search
    return len(space.grid()) * search.repeats if isinstance(search, GridSearch) else search.trials
