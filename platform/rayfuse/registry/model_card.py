"""Descriptions of runs and model versions on the pages of MLflow, as Markdown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfuse.data.row_adapter import describe_inputs
from rayfuse.formatting import truncate, without_averages
from rayfuse.modalities import build_modality
from rayfuse.spec.encoders import PretrainedModelConfig, iter_pretrained_encoders
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.sweep import Sweep
from rayfuse.spec.tasks import TaskConfig

MAX_LENGTH = 5000
"""Longest description of a version that MLflow stores."""
_MAX_METRICS = 8
_MAX_SUBSETS = 16
_MAX_ROWS = 20
_MAX_CLASSES = 8
_MAX_TEXT = 80
_GAP = "&nbsp;&nbsp;"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its evaluation, for its model card."""

    job: Job
    """The fitted job."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of rows of each split."""
    split: str = "test"
    """Split of the metrics."""
    by_inputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by subset of the inputs, all of them first."""
    selection: str = ""
    """Sentence about the best epoch."""
    cross_validation: str = ""
    """Sentence about the metrics of folds."""

    def card(self, version: int | None = None) -> str:
        """Return the model card; with `version`, also how to load and call that version of the registered model.

        It is cut at `MAX_LENGTH` between two sections.
        """
        sections = [
            describe(self.job),
            _data_section(self.sizes),
            self._metrics_section(),
            "" if version is None else _usage_section(self.job, version),
        ]
        *first, usage = filter(None, sections)
        text = "\n\n".join(first)
        room = MAX_LENGTH - len(usage) - 2
        shown = text if len(text) <= room else text[:room].rpartition("\n")[0]
        return f"{shown}\n\n{usage}"

    def _metrics_section(self) -> str:
        if not self.by_inputs:
            return ""
        all_inputs = next(iter(self.by_inputs.values()))
        names = list(without_averages(all_inputs))[:_MAX_METRICS]
        rows = [
            [subset.replace("+", " + "), *(_number(metrics.get(name)) for name in names)]
            for subset, metrics in list(self.by_inputs.items())[:_MAX_SUBSETS]
        ]
        notes = [f"{note[0].upper()}{note[1:]}." for note in (self.selection, self.cross_validation) if note]
        more = len(self.by_inputs) - len(rows)
        if more > 0:
            notes.append(f"{more} more subsets of the inputs are in the artifacts of the run.")
        return "\n\n".join(
            [f"## Metrics on the {self.split} rows, by inputs", _table(["inputs", *names], rows), *notes]
        )


def describe(spec: Job | Sweep) -> str:
    """Return what a job predicts and from which inputs, or what a sweep searches."""
    if isinstance(spec, Sweep):
        rows = [
            [_code(path), _code(_compact(p.model_dump(exclude_unset=True)))] for path, p in spec.space.items()
        ]
        job = spec.job if isinstance(spec.job, str) else getattr(spec.job, "name", "")
        return f"Hyperparameter search for the best {_code(spec.metric)} of {_code(str(job))}.\n\n" + _table(
            ["option", "values"], rows
        )
    tasks = [[_code(name), _cell(task.type), _cell(_target(task))] for name, task in spec.tasks.items()]
    inputs = [
        [_code(name), _cell(i.type), "no" if i.optional else "yes", _cell(_encoder(i)), _columns(i)]
        for name, i in spec.inputs.items()
    ]
    predicted = ", ".join(_code(name) for name in spec.tasks)
    return "\n\n".join(
        [
            f"Predicts {predicted} from {', '.join(_code(name) for name in spec.inputs)}; "
            f"the inputs are joined by the fusion {_code(spec.fusion.type)}.",
            "## Predictions",
            _table(["task", "type", "target"], tasks),
            "## Inputs",
            _table(["input", "type", "required", "encoder", "columns"], inputs),
        ]
    )


def _data_section(sizes: Mapping[str, int]) -> str:
    if not sizes:
        return ""
    return "## Data\n\n" + _table(["split", "rows"], [[name, f"{count:,}"] for name, count in sizes.items()])


def _usage_section(job: Job, version: int) -> str:
    row = dict(list(_example_row(job).items())[:_MAX_CLASSES])
    uri = f"models:/{job.registered_model_name}/{version}"
    return "\n".join(
        [
            "## Usage",
            "",
            "```python",
            "import rayfuse",
            "",
            f'model = rayfuse.load_model("{uri}")',
            f"model.predict({truncate(repr(row), 10 * _MAX_TEXT)})",
            "```",
            "",
            f'`mlflow.pyfunc.load_model("{uri}").predict(frame)` takes the same columns as a DataFrame.',
        ]
    )


def _example_row(job: Job) -> dict[str, Any]:
    """Return a row of training columns, with the names of files."""
    row: dict[str, Any] = {}
    for name, described in describe_inputs(job.inputs, job.data).items():
        if described.fallback_input is not None:
            continue
        modality = build_modality(job.inputs[name])
        value: Any = modality.example_filename if described.formats == ("file",) else modality.example()
        if described.is_flat:
            row |= value or {}
        elif value is not None:
            row |= dict.fromkeys(described.columns, value if described.max_items == 1 else [value])
    return row


def _target(task: TaskConfig) -> str:
    columns = ", ".join(task.columns)
    if isinstance(task, PretrainedModelConfig):
        return f"column {columns}, {_model_name(task.model)}, train: {task.train}"
    names: Any = getattr(task, "class_names", None) or getattr(task, "entities", None) or []
    if not names:
        return f"column {columns}"
    more = ", …" if len(names) > _MAX_CLASSES else ""
    return f"column {columns}, {len(names)} classes: {', '.join(names[:_MAX_CLASSES])}{more}"


def _encoder(options: Input) -> str:
    pretrained = [
        f"{_model_name(encoder.model)}, train: {encoder.train}"
        for _, encoder in iter_pretrained_encoders(options.encoder)
    ]
    return " ".join([options.encoder.type, *pretrained])


def _model_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] if model.startswith("/") else model


def _columns(options: Input) -> str:
    columns = list(options.source_columns)
    more = f" and {len(columns) - _MAX_CLASSES} more" if len(columns) > _MAX_CLASSES else ""
    return ", ".join(map(_code, columns[:_MAX_CLASSES])) + more


def _compact(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in content.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cell(text: str) -> str:
    """Return a text as a cell of a table, without characters that end it."""
    return truncate(" ".join(text.split()), 2 * _MAX_TEXT).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text).replace('`', '')}`"


def _line(cells: list[str]) -> str:
    """Return a line of a table, with gaps that MLflow does not draw between columns itself."""
    return f"| {f'{_GAP} | '.join(cells)} |"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(_table_lines(header, rows))


def _table_lines(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield _line(header)
    yield "|" + ":--|" * len(header)
    yield from map(_line, rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        yield f"| … and {len(rows) - _MAX_ROWS} more |" + " |" * (len(header) - 1)
