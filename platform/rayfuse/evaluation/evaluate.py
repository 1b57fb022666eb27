"""Evaluation of a model folder on rows, with all inputs and with every subset of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfuse.data.collate import Batch, collate
from rayfuse.data.ingest import read_job_rows, read_splits, split_urls
from rayfuse.data.invalid_rows import InvalidRows, check_invalid_fraction
from rayfuse.data.preview import check_first_rows
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.evaluation.answers import AnswerRecorder
from rayfuse.evaluation.attribution_plots import explain_rows, mean_attention, save_attribution_plots
from rayfuse.model.evaluation import (
    EvaluationOutputs,
    Subset,
    collect_outputs,
    compute_metrics,
    decoded_subsets,
    details,
    evaluated_subsets,
    nonempty_subsets,
    subset_name,
)
from rayfuse.model.explain import check_explainable, input_importance
from rayfuse.model.fused import task_heads
from rayfuse.model.model_io import load_job
from rayfuse.model.predictor import Predictor
from rayfuse.spec.job import Job
from rayfuse.spec.rows import Urls

ProgressCallback = Callable[[int, int], None]
"""Called with the number of rows that are done, and of all rows."""


def evaluate_folder(
    folder: Path,
    url: Urls | None = None,
    batch_size: int = 64,
    progress: ProgressCallback = lambda done, total: None,
    warn: Callable[[str], None] = lambda text: None,
    rows: tuple[Sequence[Row], InvalidRows] | None = None,
    explain: int | None = None,
    plot_dir: Path | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a model folder on the rows at `url`, or on `rows` and invalid rows, in this process.

    Each invalid row is reported to `warn`. With `explain` not None the result has the importance of each input; with
    `explain` > 0 that many rows are also explained one by one, and plotted into `plot_dir`. With `output`, the
    predictions are written to that path or URL (see `AnswerRecorder`).

    Returns {"metrics": {name: value}, "by_inputs": {"a+b": metrics, "a": …}, "rows": count, "invalid": count, "details"};
    with `explain` also "explain" (see `rayfuse.model.explain.input_importance`), "attention" (mean by input over the
    explained rows) and "plots" (paths). Raises DataError if the data cannot be read or has more invalid rows than the
    job's `data.max_bad_rows` allows, SpecError if `explain` is given for a model with too many inputs.
    """
    if rows is None:
        assert url is not None, "pass url or rows"
        check_first_rows(load_job(folder)[0], {"rows": url})
    predictor = Predictor(folder)
    inputs = list(predictor.job.inputs)
    rows = rows or read_job_rows(url or "", predictor.job)
    subsets: list[Subset] = evaluated_subsets(inputs)
    if explain is not None:
        check_explainable(inputs)
        subsets = [*nonempty_subsets(inputs), ()]
    recorder = None if output is None else AnswerRecorder(predictor, output)
    batches = _EvaluationBatches(predictor.job, *rows, batch_size, progress, warn, recorder)
    decoded = decoded_subsets(task_heads(predictor.model), inputs)
    subsets += [subset for subset in decoded if subset not in subsets]
    by_subset = _collect(predictor, batches, subsets, recorder, decoded)
    batches.raise_for_invalid_rows(url)
    by_subset |= _collect_frequent(predictor, rows[0], batch_size, by_subset)
    result = _metrics(predictor, by_subset) | {"invalid": len(batches.invalid)}
    if explain is not None:
        result |= _explanation(predictor, by_subset, batches.rows, explain, plot_dir)
    return result


def _collect(
    predictor: Predictor,
    batches: Iterable[Batch],
    subsets: Sequence[Subset],
    recorder: AnswerRecorder | None = None,
    decoded: Sequence[Subset] = (),
) -> dict[Subset, EvaluationOutputs]:
    on_device = (batch.to(predictor.device) for batch in batches)
    forward = recorder or predictor.model
    collected = collect_outputs(forward, task_heads(predictor.model), on_device, subsets, decoded)
    if recorder:
        recorder.close()
    return dict(zip(subsets, collected, strict=True))


def _collect_frequent(
    predictor: Predictor,
    rows: Sequence[Row],
    batch_size: int,
    known: Mapping[Subset, EvaluationOutputs],
) -> dict[Subset, EvaluationOutputs]:
    """Evaluate the combinations of inputs that most rows have, which are known after a pass over the rows."""
    inputs = tuple(predictor.job.inputs)
    missing = [subset for subset in evaluated_subsets(inputs, known[inputs].present) if subset not in known]
    if not missing:
        return {}
    batches = _EvaluationBatches(
        predictor.job, rows, InvalidRows(), batch_size, lambda done, total: None, lambda text: None
    )
    return _collect(predictor, batches, missing)


def _metrics(predictor: Predictor, by_subset: Mapping[Subset, EvaluationOutputs]) -> dict[str, Any]:
    heads, job = task_heads(predictor.model), predictor.job
    all_inputs = tuple(job.inputs)
    by_inputs = {
        subset_name(subset): compute_metrics(heads, job, by_subset[subset])
        for subset in evaluated_subsets(all_inputs, by_subset[all_inputs].present)
    }
    return {
        "metrics": by_inputs[subset_name(all_inputs)],
        "by_inputs": by_inputs,
        "rows": by_subset[all_inputs].num_samples,
        "details": details(heads, by_subset[all_inputs], by_subset.get(())),
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
        recorder: AnswerRecorder | None = None,
    ) -> None:
        self._recorder = recorder
        self.job, self.rows, self.invalid = job, rows, invalid
        self._batch_size, self._progress, self._warn = batch_size, progress, warn
        self._total = len(rows) + len(invalid)
        self._preprocessor = Preprocessor(job.inputs, job.tasks)
        for row in invalid:
            warn(str(row))
            if recorder:
                recorder.add(row, row)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.rows), self._batch_size):
            part = self.rows[start : start + self._batch_size]
            samples = [sample for row in part if (sample := self._sample(row)) is not None]
            if samples:
                yield collate(samples, self._preprocessor.modalities)
            self._progress(start + len(part), len(self.rows))

    def raise_for_invalid_rows(self, url: Urls | None) -> None:
        """Raise DataError if all rows are invalid, or more than the job allows."""
        check_invalid_fraction(self.invalid, self._total, self.job.data.max_bad_rows)
        if len(self.invalid) == self._total:
            raise DataError(
                f"{url if isinstance(url, str) else 'data'}: all {self._total} rows are invalid; correct the rows, or evaluate others"
            )

    def _sample(self, row: Row) -> Sample | None:
        found: Sample | InvalidRow
        try:
            found = self._preprocessor.from_row(row)
        except InvalidInputError as error:
            found = InvalidRow(row.origin, str(error))
            self.invalid.add(found)
            self._warn(str(found))
        if self._recorder:
            self._recorder.add(row, found)
        return None if isinstance(found, InvalidRow) else found
