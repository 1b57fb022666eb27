"""A drafted job, with the reason of each choice."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rayfuse.formatting import table, truncate
from rayfuse.schema_inference.column import Column
from rayfuse.schema_inference.commented_yaml import Path as KeyPath
from rayfuse.schema_inference.commented_yaml import render
from rayfuse.schema_inference.inputs import describe
from rayfuse.schema_inference.naming import relative_paths
from rayfuse.schema_inference.tasks import Task
from rayfuse.spec.job import Job

_MAX_NOTE_CHARS = 110


@dataclass(frozen=True)
class DataFacts:
    """Properties of the data of a job, from a sample."""

    num_rows: int
    """Rows that were read."""
    is_complete: bool
    """True if these are all rows."""
    columns: Mapping[str, Column]
    """Columns by name, except targets."""
    tasks: Mapping[str, Task]
    """Tasks by name."""


@dataclass(frozen=True)
class JobDraft:
    """A job for data as it is, with the reason of each choice."""

    job: Job
    """The job."""
    facts: DataFacts
    """Properties of the data."""
    sample: str
    """Number of rows, for people."""
    left_out: Mapping[str, str]
    """Columns that no input reads, and why."""
    warnings: Sequence[str]
    """Remarks for the user to check."""
    comments: Mapping[KeyPath, str] = field(repr=False)
    """Comments on nodes of the job's YAML."""
    after: Mapping[KeyPath, list[str]] = field(repr=False)
    """Comments at the end of blocks of the job's YAML."""

    def with_job(self, job: Job) -> "JobDraft":
        """Return the draft with another job, such as one with the options of a preset."""
        return dataclasses.replace(self, job=job)

    def to_yaml(self, folder: str | Path = ".") -> str:
        """Return the job as YAML with comments; local paths are relative to `folder`.

        Raises SpecError for rows in memory.
        """
        content = yaml.safe_load(self.job.to_yaml())
        header = f"# Inferred from {self.sample}. Check what each column is taken as, and edit it; `rayfuse train` trains it.\n"
        return header + render(relative_paths(content, Path(folder).resolve()), self.comments, self.after)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return what each column is taken as, and why, as JSON."""
        found: dict[str, dict[str, Any]] = {
            task.column: {"target": task.type, "reason": task.note} for task in self.facts.tasks.values()
        }
        for name, column in self.facts.columns.items():
            note = self.left_out.get(name)
            found.setdefault(
                name, {"input": None if note else column.kind, "reason": note or describe(column)}
            )
        return found

    def __str__(self) -> str:
        """Return a table of the columns."""
        rows = [[task.column, task.type, f"target: {task.note}"] for task in self.facts.tasks.values()]
        for name, column in self.facts.columns.items():
            note = self.left_out.get(name)
            rows.append(
                [name or '""', "-", f"left out: {note}"] if note else [name, column.kind, describe(column)]
            )
        cells = [[name, kind, truncate(note, _MAX_NOTE_CHARS)] for name, kind, note in rows]
        return f"{self.sample}\n{table(['column', 'taken as', 'reason'], cells)}"
