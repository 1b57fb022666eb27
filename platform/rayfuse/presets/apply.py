"""Fill the keys of a job that its spec leaves out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rayfuse.presets.facts import Facts
from rayfuse.presets.inputs import Values, choose_input
from rayfuse.presets.training import choose_align, choose_fusion, choose_train
from rayfuse.spec.job import Job
from rayfuse.spec.quality import Quality


@dataclass(frozen=True)
class Preset:
    """Values that a preset sets in a job."""

    quality: Quality
    """Level of quality."""
    rows: int
    """Training rows for which the values were chosen."""
    values: Values
    """The values, as in YAML: none that the spec sets itself."""

    def apply(self, job: Job) -> Job:
        """Return the job with the values. Raises SpecError if one does not fit those of the spec."""
        return job.override(**_leaves(self.values))

    def __str__(self) -> str:
        lines = "".join(f"\n  {path}: {_format(value)}" for path, value in _sections(self.values))
        return f"quality {self.quality}, for {self.rows} training rows, sets{lines or ' nothing'}"


def apply_preset(job: Job, quality: Quality, facts: Facts) -> Job:
    """Return the job with the values of `choose_preset`. Raises SpecError if a value does not fit those of the spec."""
    return choose_preset(job, quality, facts).apply(job)


def choose_preset(job: Job, quality: Quality, facts: Facts) -> Preset:
    """Choose the values of the keys that a job leaves out.

    A block whose `type` the spec sets is only completed if the preset has the same type.
    """
    chosen: Values = {
        "inputs": {name: choose_input(job, name, quality, facts) for name in job.inputs},
        "align": choose_align(job),
        "fusion": choose_fusion(job, facts),
    }
    partly = job.override(**_leaves(_missing(chosen, _given(job))))
    trained = any(not options.frozen for _, options in partly.pretrained_models())
    chosen["train"] = choose_train(job, quality, facts, trained)
    return Preset(quality, facts.rows, _missing(chosen, _given(job)))


def _given(job: Job) -> dict[str, Any]:
    sections = {"inputs", "align", "fusion", "train"}
    return job.model_dump(exclude_unset=True, include=sections)


def _missing(chosen: Mapping[str, Any], given: Mapping[str, Any]) -> Values:
    """Return the chosen values without those given."""
    if given.get("type", chosen.get("type")) != chosen.get("type") and "type" in chosen:
        return {}
    missing: Values = {}
    for key, value in chosen.items():
        if key not in given:
            missing[key] = value
        elif (
            isinstance(value, dict)
            and isinstance(given[key], dict)
            and (inner := _missing(value, given[key]))
        ):
            missing[key] = inner
    return missing


def _leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values by path."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}{key}"
        found |= _leaves(value, f"{where}.") if isinstance(value, dict) else {where: value}
    return found


def _sections(values: Values) -> Iterator[tuple[str, Any]]:
    """Yield the values of each input and of each other section, with its path."""
    for name, value in values.get("inputs", {}).items():
        yield f"inputs.{name}", value
    yield from ((name, value) for name, value in values.items() if name != "inputs")


def _format(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()
