"""Evaluation of a model folder on rows, with all inputs and with every subset of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfuse.data.collate import Batch, collate
from rayfuse.data.ingest import read_job_rows, read_splits, split_urls
from rayfuse.data.invalid_rows import InvalidRows, check_invalid_fraction
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.evaluation.attribution_plots import explain_rows, mean_attention, save_attribution_plots
from rayfuse.model.evaluation import (
    EvaluationOutputs,
    Subset,
    collect_outputs,
    compute_metrics,
    details,
    nonempty_subsets,
    subset_name,
)
from rayfuse.model.explain import check_explainable, input_importance
from rayfuse.model.fused import task_heads
from rayfuse.model.predictor import Predictor
from rayfuse.spec.job import Job

ProgressCallback = Callable[[int, int], None]
"""Called with the number of rows that are done, and of all rows."""


def evaluate_folder(
    folder: Path,
    url: str | None = None,
    batch_size: int = 64,
    progress: ProgressCallback = lambda done, total: None,
    warn: Callable[[str], None] = lambda text: None,
    rows: tuple[Sequence[Row], InvalidRows] | None = None,
    explain: int | None = None,
    plot_dir: Path | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a model folder on the rows at `url`, or on `rows` and invalid rows, in this process.

    Each invalid row is reported to `warn`. With `explain` not None the result has the importance of each input; with
    `explain` > 0 that many rows are also explained one by one, and plotted into `plot_dir`.

    Returns {"metrics": {name: value}, "by_inputs": {"a+b": metrics, "a": …}, "rows": count, "invalid": count, "details"};
    with `explain` also "explain" (see `rayfuse.model.explain.input_importance`), "attention" (mean by input over the
    explained rows) and "plots" (paths). Raises DataError if the data cannot be read or has more invalid rows than the
    job's `data.max_bad_rows` allows, SpecError if `explain` is given for a model with too many inputs.
    """
    predictor = Predictor(folder)
    inputs = list(predictor.job.inputs)
    if rows is None:
        assert url is not None, "pass url or rows"
        rows = read_job_rows(url, predictor.job)
    subsets: list[Subset] = nonempty_subsets(inputs)
    if explain is not None:
        check_explainable(inputs)
        subsets.append(())
    batches = _EvaluationBatches(predictor.job, *rows, batch_size, progress, warn)
    by_subset = _collect(predictor, batches, subsets)
    batches.raise_for_invalid_rows(url)
    result = _metrics(predictor, by_subset) | {"invalid": len(batches.invalid)}
    if explain is not None:
        result |= _explanation(predictor, by_subset, batches.rows, explain, plot_dir)
    return result


def _collect(
    predictor: Predictor, batches: Iterable[Batch], subsets: Sequence[Subset]
) -> dict[Subset, EvaluationOutputs]:
    on_device = (batch.to(predictor.device) for batch in batches)
    collected = collect_outputs(predictor.model, task_heads(predictor.model), on_device, subsets)
    return dict(zip(subsets, collected, strict=True))


def _metrics(predictor: Predictor, by_subset: Mapping[Subset, EvaluationOutputs]) -> dict[str, Any]:
    heads, job = task_heads(predictor.model), predictor.job
    by_inputs = {
        subset_name(subset): compute_metrics(heads, job, outputs)
        for subset, outputs in by_subset.items()
        if subset
    }
    all_inputs = tuple(job.inputs)
    return {
        "metrics": by_inputs[subset_name(all_inputs)],
        "by_inputs": by_inputs,
        "rows": by_subset[all_inputs].num_samples,
        "details": details(heads, by_subset[all_inputs]),
    }


def _explanation(
    predictor: Predictor,
    by_subset: Mapping[Subset, EvaluationOutputs],
    rows: Sequence[Row],
    count: int,
    plot_dir: Path | None,
) -> dict[str, Any]:
    importance = input_importance(task_heads(predictor.model), list(predictor.job.inputs), by_subset)
    if not count or plot_dir is None:
        return {"explain": importance}
    explained = explain_rows(predictor, rows, count)
    return {
        "explain": importance,
        "attention": mean_attention(explained),
        "plots": save_attribution_plots(plot_dir, explained, predictor),
    }


def evaluation_rows(job: Job, split: str) -> tuple[Sequence[Row], InvalidRows]:
    """Read the rows that a model of `job` was evaluated on: the test rows, or the held-out validation rows."""
    urls = split_urls(job)
    if split == "test" and split in urls:
        return read_job_rows(urls[split], job)
    splits, invalid = read_splits(job)
    return splits[split], invalid.get(split, InvalidRows())


class _EvaluationBatches:
    """Batches of rows. Rows that cannot be used are added to `invalid` during iteration."""

    def __init__(
        self,
        job: Job,
        rows: Sequence[Row],
        invalid: InvalidRows,
        batch_size: int,
        progress: ProgressCallback,
        warn: Callable[[str], None],
    ) -> None:
        self.job, self.rows, self.invalid = job, rows, invalid
        self._batch_size, self._progress, self._warn = batch_size, progress, warn
        self._total = len(rows) + len(invalid)
        self._preprocessor = Preprocessor(job.inputs, job.tasks)
        for row in invalid:
            warn(str(row))

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self._batch_size):
            part = self.rows[start : start + self._batch_size]
            samples = [sample for row in part if (sample := self._sample(row)) is not None]
            if samples:
                yield collate(samples, self._preprocessor.modalities)
            self._progress(start + len(part), len(self.rows))

    def raise_for_invalid_rows(self, url: str | None) -> None:
        """Raise DataError if all rows are invalid, or more than the job allows."""
        check_invalid_fraction(self.invalid, self._total, self.job.data.max_bad_rows)
        if len(self.invalid) == self._total:
            raise DataError(
                f"{url or 'data'}: all {self._total} rows are invalid; correct the rows, or evaluate others"
            )

    def _sample(self, row: Row) -> Sample | None:
        try:
            return self._preprocessor.from_row(row)
        except InvalidInputError as error:
            invalid = InvalidRow(row.origin, str(error))
            self.invalid.add(invalid)
            self._warn(str(invalid))
            return None
