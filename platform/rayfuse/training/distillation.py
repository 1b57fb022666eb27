"""Distillation: outputs of a teacher, a trained model folder, on the training rows (Hinton et al., 2015)."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fsspec
import torch

from rayfuse.data.collate import collate
from rayfuse.data.ingest import MapFn
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.data.store import RowDataset
from rayfuse.data.validation import validate_splits
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.model.model_io import load_job, load_model
from rayfuse.spec.job import Job
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.runs import RunFolder

_BATCH_SIZE = 256
_FOLDER = "teacher"

TeacherOutputs = dict[str, torch.Tensor]
"""Raw outputs of a teacher on all training rows by task, float32 (rows, …)."""


def copy_teacher(folder: Path, run: RunFolder) -> str:
    """Copy a teacher's folder into the run's folder, which all workers can read; return its URL.

    A resumed run keeps the teacher that it started with.
    """
    url = run.path(_FOLDER)
    fs, path = fsspec.url_to_fs(url)
    if not fs.exists(path):
        run.upload(folder, f"{_FOLDER}.partial")
        fs.mv(f"{path}.partial", path, recursive=True)
    return url


def check_teacher(job: Job, rows: RowDataset, folder: Path, map_fn: MapFn = map) -> None:
    """Raise DataError if a model folder cannot teach a job: it lacks a task, or rows lack an input that it requires.

    The rows are decoded in this process or with `map_fn`.
    """
    teacher_job, _ = load_job(folder)
    for name, task in job.tasks.items():
        teacher_task = teacher_job.tasks.get(name)
        if teacher_task is None:
            raise _teacher_error(job, f"it has no task `{name}`; it has: {', '.join(teacher_job.tasks)}")
        if teacher_task.type != task.type:
            raise _teacher_error(job, f"its task `{name}` is {teacher_task.type}, here it is {task.type}")
        if getattr(teacher_task, "classes", None) != getattr(task, "classes", None):
            raise _teacher_error(
                job, f"its task `{name}` has other classes; set tasks.{name}.classes to the teacher's"
            )
    _check_required_inputs(job, teacher_job, rows, map_fn)


def _check_required_inputs(job: Job, teacher_job: Job, rows: RowDataset, map_fn: MapFn) -> None:
    """Raise DataError if rows have no content for an input that the teacher requires, as validation decides it."""
    required = {name: options for name, options in teacher_job.inputs.items() if not options.optional}
    if not required:
        return
    without_lengths = teacher_job.train.model_copy(update={"group_by_length": False})
    inputs_only = {"inputs": required, "tasks": {}, "train": without_lengths}
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        found = validate_splits(
            {"train": rows}, teacher_job.model_copy(update=inputs_only), Path(folder), map_fn
        )
    invalid = found["train"].invalid
    if len(invalid):
        reasons = "\n".join(invalid.top_reasons())
        raise _teacher_error(
            job,
            f"it requires {', '.join(f'`{name}`' for name in required)}, and {len(invalid)} of {len(rows)} training rows "
            f"have no valid value for it:\n{reasons}",
        )


def compute_teacher_outputs(
    job: Job, rows: Sequence[Row], url: str, context: DistributedContext
) -> TeacherOutputs:
    """Compute the teacher's outputs on every training row without augmentation, from its own inputs and columns.

    Each rank predicts a part of the rows; every rank must call it, and all ranks get all outputs. Raises DataError if
    the teacher rejects a row.
    """
    mine: dict[str, list[torch.Tensor]] = {name: [] for name in job.tasks}
    with _local_copy(url) as folder, torch.inference_mode():
        teacher_job, model = load_model(folder)
        preprocessor = Preprocessor(teacher_job.inputs)
        model.to(context.device)
        for chunk in _chunks(rows[context.rank :: context.world_size]):
            samples = [_sample(job, preprocessor, row) for row in chunk]
            batch = collate(samples, preprocessor.modalities, add_dummies=True)
            outputs = model(batch.to(context.device))
            for name, found in mine.items():
                found.append(_require_fixed_size(job, name, outputs.tasks[name]).float().cpu())
    outputs_here = {name: torch.cat(found) if found else torch.empty(0) for name, found in mine.items()}
    return _gather_outputs(outputs_here, context, len(rows))


def _require_fixed_size(job: Job, name: str, outputs: torch.Tensor) -> torch.Tensor:
    """Return the outputs if all rows have outputs of one size, which alone can be distilled."""
    if outputs.ndim > 2:
        raise _teacher_error(
            job, f"its task `{name}` predicts a sequence for each row, which cannot be distilled"
        )
    return outputs


def _gather_outputs(mine: TeacherOutputs, context: DistributedContext, rows: int) -> TeacherOutputs:
    if context.world_size == 1:
        return mine
    gathered = context.all_gather(mine)
    whole: TeacherOutputs = {}
    for name in mine:
        shape = gathered[0][name].shape[1:]  # there are more rows than workers, or rank 0 has the only one
        whole[name] = torch.empty(rows, *shape)
        for rank, part in enumerate(gathered):
            if len(part[name]):
                whole[name][rank :: context.world_size] = part[name]
    return whole


def _sample(job: Job, preprocessor: Preprocessor, row: Row) -> Sample:
    try:
        return preprocessor.from_row(row)
    except InvalidInputError as error:
        raise _teacher_error(job, f"{row.origin}: {error}") from None


def _teacher_error(job: Job, reason: str) -> DataError:
    teacher = job.train.distillation.teacher if job.train.distillation else ""
    return DataError(f"train.distillation.teacher: {teacher} does not fit this job: {reason}")


def _chunks(rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    return (rows[start : start + _BATCH_SIZE] for start in range(0, len(rows), _BATCH_SIZE))


@contextmanager
def _local_copy(url: str) -> Iterator[Path]:
    """Yield a local folder with the content of a URL."""
    if "://" not in url:
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="rayfuse-teacher-") as scratch:
        fs, path = fsspec.url_to_fs(url)
        fs.get(f"{path.rstrip('/')}/", f"{scratch}/", recursive=True)
        yield Path(scratch)
