"""Jobs for data as it is."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.api.presets import with_preset
from rayfuse.api.specs import SPEC_SUFFIXES, as_spec
from rayfuse.errors import RayfuseError, SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.quality import Quality

if TYPE_CHECKING:
    from rayfuse.estimate.planner import Plan
    from rayfuse.schema_inference.job_draft import JobDraft

_PARAMETERS = ("data", "target", "tasks", "exclude", "name", "quality")
_log = logging.getLogger(__name__)


def init(
    data: Any,
    target: str | Sequence[str],
    *,
    tasks: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    name: str | None = None,
    quality: Quality | None = None,
    **overrides: Any,
) -> Job:
    """Return a job that predicts `target` from the other columns of the data, inferred from a sample of the rows.

    Numbers and categories become one tabular input; each column of texts, images, audio, videos and time series becomes
    its own. Ids, constant and nearly empty columns, and columns that give the target away, are left out. `print(job)`
    shows the job, and `rayfuse init` writes it with the reason of each choice.

    Args:
        data: The path or URL of a file, a folder or a glob, a list of these, a table in memory (a DataFrame, an Arrow
            table, a list of dicts, a dataset of Ray or Hugging Face), or a mapping of splits to tables.
        target: Column to predict, or several.
        tasks: Kinds of tasks by target, as in `{"label": "classification"}`, instead of the inferred ones.
        exclude: Columns that are no inputs, such as those that are not known when the model predicts.
        name: Name of the job; by default made from those of the data and the target.
        quality: `fast`, `medium` or `best`: also choose the options of encoders, fusion and training by the data.
        **overrides: Values of the job by path, as in `**{"train.epochs": 3}`.

    Raises:
        SpecError: The data cannot be read, a column does not exist, or there is nothing to predict or no input.
    """
    return draft(data, target, tasks=tasks, exclude=exclude, name=name, quality=quality, **overrides).job


def draft(
    data: Any,
    target: str | Sequence[str],
    *,
    tasks: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    name: str | None = None,
    quality: Quality | None = None,
    **overrides: Any,
) -> "JobDraft":
    """Return the job that `init` returns, with the reason of each choice. Raises SpecError as `init` does."""
    from rayfuse.schema_inference.draft import draft_job

    if isinstance(data, (str, Path)) and str(data).lower().endswith(SPEC_SUFFIXES):
        raise SpecError(
            f"{data}: a spec file, not data; its targets are its `tasks`, so leave out the target"
        )
    source = str(data) if isinstance(data, Path) else data
    targets = [target] if isinstance(target, str) else list(target)
    for_preset = quality is not None
    drafted = draft_job(source, targets, tasks=tasks, exclude=exclude, name=name, for_preset=for_preset)
    return drafted.with_job(with_preset(as_spec(drafted.job, Job, overrides, _PARAMETERS), quality))


def check_output(path: str | Path, force: bool = False) -> None:
    """Raise SpecError if the file of a job exists, unless `force`."""
    if Path(path).exists() and not force:
        raise SpecError(f"{path}: the file exists; write another with --output, or overwrite it with --force")


def write_job(drafted: "JobDraft", path: str | Path) -> None:
    """Write a drafted job as YAML with comments. Raises SpecError if the file cannot be written."""
    target = Path(path)
    try:
        target.write_text(drafted.to_yaml(target.parent), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror or error}") from None


def try_plan(drafted: "JobDraft") -> "Plan | None":
    """Return the plan of a drafted job without reading its rows; None, with a warning, if there is none."""
    from rayfuse.api.planning import plan

    try:
        return plan(drafted.job, rows=drafted.facts.num_rows)
    except (RayfuseError, ImportError) as error:
        _log.warning("no plan: %s", error)
        return None
