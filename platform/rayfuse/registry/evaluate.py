"""Measure a model folder on rows: as they are, and as if only some of the inputs had been given."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rayfuse.data.bad import BadRows, refuse_too_many_bad
from rayfuse.data.batches import Batch, collate
from rayfuse.data.reading import read_job_rows, read_splits
from rayfuse.data.rows import BadRow, Row
from rayfuse.data.samples import Sample, SampleMaker
from rayfuse.errors import BadInput, DataError
from rayfuse.model.evaluation import Subset, collect, details, score, subset_name, subsets
from rayfuse.model.explain import check_explainable, importance
from rayfuse.model.fused import heads_of
from rayfuse.model.predictor import Predictor
from rayfuse.registry.explaining import explain_rows, mean_attention, save_explanations
from rayfuse.spec.job import Job

Progress = Callable[[int, int], None]
"""Called with the number of rows done and of all rows."""


def evaluate_folder(
    folder: Path,
    url: str | None = None,
    batch_size: int = 64,
    progress: Progress = lambda done, total: None,
    warn: Callable[[str], None] = lambda text: None,
    rows: tuple[Sequence[Row], BadRows] | None = None,
    explain: int | None = None,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Metrics of a model on the rows at `url` (or on `rows` and bad rows read before), in this process.

    Returns {"metrics": {name: value}, "by_inputs": {"a+b": metrics, "a": …}, "rows", "bad", "details"}. Each bad row
    is named to `warn`. Raises DataError for unusable data, or more bad rows than the job's `data.max_bad_rows`.

    With `explain` also "explain": what each input contributed by task (see `rayfuse.model.explain.importance`), and so
    many rows one by one: "attention", over those rows, and "pictures", their paths in the folder `pictures`. Raises
    SpecError then for a model of too many inputs.
    """
    predictor = Predictor(folder)
    job = predictor.job
    if rows is None:
        assert url is not None, "give a url or rows"
        rows = read_job_rows(url, job)
    measured = _Rows(job, *rows, batch_size, progress, warn)
    heads = heads_of(predictor.model)
    chosen: list[Subset] = subsets(list(job.inputs))
    if explain is not None:
        check_explainable(list(job.inputs))
        chosen.append(())
    # The first subset is the whole, and so the rows as they are.
    collected = collect(predictor.model, heads, (batch.to(predictor.device) for batch in measured), chosen)
    measured.refuse_unusable(url)
    by_subset = dict(zip(chosen, collected, strict=True))
    by_inputs = {subset_name(s): score(heads, job, outputs) for s, outputs in by_subset.items() if s}
    found: dict[str, Any] = (
        {} if explain is None else {"explain": importance(heads, list(job.inputs), by_subset)}
    )
    if explain and pictures is not None:
        explained = explain_rows(predictor, measured.rows, explain)
        found["attention"] = mean_attention(explained)
        found["pictures"] = save_explanations(pictures, explained, predictor)
    return {
        "metrics": next(iter(by_inputs.values())),
        "by_inputs": by_inputs,
        "rows": collected[0].samples,
        "bad": len(measured.bad),
        "details": details(heads, collected[0]),
        **found,
    }


def judged_rows(job: Job, split: str) -> tuple[Sequence[Row], BadRows]:
    """The rows of a job that it was judged on: its test rows, or the validation rows that it held out."""
    if split == "test" and job.data.test is not None:
        return read_job_rows(job.data.test, job)
    splits, bad = read_splits(job)
    return splits[split], bad.get(split, BadRows())


class _Rows:
    """Rows as batches; those that cannot be used are collected in `bad` on the way."""

    def __init__(
        self,
        job: Job,
        rows: Sequence[Row],
        bad: BadRows,
        batch_size: int,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.job, self.rows, self.bad = job, rows, bad
        self._batch_size, self._progress, self._warn = batch_size, progress, warn
        self._total = len(rows) + len(bad)
        self._maker = SampleMaker(job.inputs, job.tasks)
        for row in bad:
            warn(str(row))

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self._batch_size):
            part = self.rows[start : start + self._batch_size]
            samples = [sample for row in part if (sample := self._sample(row)) is not None]
            if samples:
                yield collate(samples, self._maker.modalities)
            self._progress(start + len(part), len(self.rows))

    def refuse_unusable(self, url: str | None) -> None:
        """Raise DataError where too many rows, or all of them, are bad."""
        refuse_too_many_bad(self.bad, self._total, self.job.data.max_bad_rows)
        if len(self.bad) == self._total:
            raise DataError(f"{url or 'data'}: no usable row")

    def _sample(self, row: Row) -> Sample | None:
        try:
            return self._maker.from_row(row)
        except BadInput as error:
            bad = BadRow(row.origin, str(error))
            self.bad.add(bad)
            self._warn(str(bad))
            return None
