"""Distillation: what a teacher, a trained model folder, answers on the training rows (Hinton et al., 2015)."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import torch

from rayfuse.data.batches import collate
from rayfuse.data.rows import Row, is_missing
from rayfuse.data.samples import SampleMaker
from rayfuse.errors import BadInput, DataError
from rayfuse.model.folder import load_model, read_job
from rayfuse.spec.job import Job
from rayfuse.train.runs import RunFolder

_BATCH = 256
_FOLDER = "teacher"

Answers = dict[str, torch.Tensor]
"""A teacher's raw outputs on all training rows, by task: float32 (rows, …)."""


def keep_teacher(folder: Path, run: RunFolder) -> str:
    """Copy a teacher's folder to the run, where all workers find it; its URL there.

    A run that goes on keeps the teacher that it began with.
    """
    url = run.path(_FOLDER)
    fs, path = fsspec.url_to_fs(url)
    if not fs.exists(path):
        run.upload(folder, f"{_FOLDER}.partial")
        fs.mv(f"{path}.partial", path, recursive=True)
    return url


def check_teacher(job: Job, rows: Sequence[Row], folder: Path) -> None:
    """Raise DataError where a model folder cannot teach a job: it lacks a task, or rows lack an input that it needs."""
    taught, _ = read_job(folder)
    for name, task in job.tasks.items():
        theirs = taught.tasks.get(name)
        if theirs is None:
            raise _cannot(job, f"it has no task `{name}`; it has: {', '.join(taught.tasks)}")
        if theirs.type != task.type:
            raise _cannot(job, f"its task `{name}` is {theirs.type}, here it is {task.type}")
        if getattr(theirs, "classes", None) != getattr(task, "classes", None):
            raise _cannot(
                job, f"its task `{name}` has other classes; list the teacher's under tasks.{name}.classes"
            )
    for name, options in taught.inputs.items():
        if options.optional:
            continue
        without = (row.origin for row in rows if is_missing(options.read(row.values)))
        first = next(without, None)
        if first is not None:
            raise _cannot(
                job,
                f"it needs the input `{name}`, and {1 + sum(1 for _ in without)} of {len(rows)} training rows have "
                f"nothing in the column `{', '.join(options.columns_read)}`, such as {first}",
            )


def teacher_answers(
    job: Job, rows: Sequence[Row], url: str, rank: int, world: int, device: torch.device
) -> Answers:
    """What the teacher at `url` answers on every training row, whole, read through its own inputs and columns.

    Each of `world` workers asks it about a part of the rows; all of them must call it, and all get all answers.
    """
    mine: dict[str, list[torch.Tensor]] = {name: [] for name in job.tasks}
    with _local(url) as folder, torch.inference_mode():
        taught, model = load_model(folder)
        maker = SampleMaker(taught.inputs)
        model.to(device)
        for part in _parts(rows[rank::world]):
            batch = collate([_sample(job, maker, row) for row in part], maker.modalities, blanks=True)
            outputs = model(batch.to(device))
            for name, found in mine.items():
                found.append(_fixed(job, name, outputs[name]).float().cpu())
    answers = {name: torch.cat(found) if found else torch.empty(0) for name, found in mine.items()}
    return _of_all(answers, world, len(rows))


def _fixed(job: Job, name: str, outputs: torch.Tensor) -> torch.Tensor:
    """Outputs of one size for all rows, which alone can be kept from batch to batch."""
    if outputs.ndim > 2:
        raise _cannot(job, f"its task `{name}` answers with as much as a row is long, which is not distilled")
    return outputs


def _of_all(mine: Answers, world: int, rows: int) -> Answers:
    if world == 1:
        return mine
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, mine)
    whole: Answers = {}
    for name in mine:
        shape = gathered[0][name].shape[1:]  # there are more rows than workers, or rank 0 has the only one
        whole[name] = torch.empty(rows, *shape)
        for rank, part in enumerate(gathered):
            if len(part[name]):
                whole[name][rank::world] = part[name]
    return whole


def _sample(job: Job, maker: SampleMaker, row: Row) -> Any:
    try:
        return maker.from_row(row)
    except BadInput as error:
        raise _cannot(job, f"{row.origin}: {error}") from None


def _cannot(job: Job, reason: str) -> DataError:
    teacher = job.train.distill.teacher if job.train.distill else ""
    return DataError(f"train.distill.teacher: {teacher} cannot teach this job: {reason}")


def _parts(rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    return (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """The folder at a URL on the local disk."""
    if "://" not in url:
        yield Path(url)
        return
    with tempfile.TemporaryDirectory(prefix="rayfuse-teacher-") as scratch:
        fs, path = fsspec.url_to_fs(url)
        fs.get(f"{path.rstrip('/')}/", f"{scratch}/", recursive=True)
        yield Path(scratch)
