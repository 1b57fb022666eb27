"""`rayfuse predict MODEL NAME=VALUE …`: one prediction; `rayfuse predict MODEL --data URL --output FILE`: one per row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import InvalidInputError, SpecError

if TYPE_CHECKING:
    from rayfuse.api.models import InputDescription

_TOP_K = 3
"""Number of a classification's scores that are printed."""


@dataclass(frozen=True)
class Given:
    """One value of an argument."""

    content: str | bytes
    """The text, or the bytes of a file."""
    filename: str = ""
    """Name of the file; empty for a text."""


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("values", metavar="NAME=VALUE...", nargs=-1)
@click.option(
    "--tracking-uri", "tracking_uri", metavar="URI", help="MLflow server or database, for models:/…"
)
@click.option(
    "--data",
    "url",
    metavar="URL",
    help="Predict rows instead of one: a data file, glob or folder.",
)
@click.option(
    "--output", "target", metavar="FILE", help="Path or URL of the predictions: .parquet, .jsonl or .csv."
)
@click.option(
    "--keep",
    metavar="COLUMN,…",
    help="Columns of the data to keep in the output; by default all of texts, numbers, booleans and times.",
)
@click.option("--scores", is_flag=True, help="Also write the probabilities of the classes, as TASK_scores.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows of a batch; 64 by default.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Number of Ray actors, each with the model; by default this process predicts, without Ray. For an endpoint, "
    "the number of requests at a time; 8 by default.",
)
@click.option(
    "--max-bad-rows",
    "max_bad_rows",
    metavar="FRACTION",
    callback=lambda context, parameter, value: _parse_fraction(value),
    help="Fraction of invalid rows, such as 1%, above which the command fails once the output is written; by default "
    "only if all rows are invalid.",
)
@click.option("--no-resume", is_flag=True, help="Predict all rows again after an interrupted command.")
@output.json_option
def predict(
    model: str, values: tuple[str, ...], tracking_uri: str | None, url: str | None, **options: Any
) -> None:
    """Predict with MODEL: models:/NAME@ALIAS, a model folder, or the URL of an endpoint.

    Each input is NAME=VALUE; `NAME=@FILE` reads a file or URL, as in image=@digit.png text="is it even?". Time series,
    columns and item sequences are JSON, as in patient='{"age": 61}'; repeat the name of an input that takes several
    values. Set RAYFUSE_API_KEY for an endpoint with API keys.

    With --data and --output, all rows of data files are predicted. The same command resumes an interrupted one.
    """
    if url is not None:
        if values:
            raise SpecError(f"{values[0]}: give values of one row or --data, not both")
        _predict_data(model, url, tracking_uri, **options)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        name = given[0].replace("--target", "--output")
        raise SpecError(f"{name}: only for predictions of --data; add it, or leave {name} out")
    _predict_one(model, values, tracking_uri)


def _predict_one(model: str, values: Sequence[str], tracking_uri: str | None) -> None:
    from rayfuse.api.models import load_model

    given = parse_values(values)
    loaded = load_model(model, tracking_uri=tracking_uri)
    try:
        prediction = loaded.predict(to_row(given, loaded.inputs))
    except InvalidInputError as error:
        raise SpecError(str(error)) from None
    output.print_result(prediction, format_prediction(prediction))


def _predict_data(
    model: str,
    url: str,
    tracking_uri: str | None,
    target: str | None,
    keep: str | None,
    no_resume: bool,
    **options: Any,
) -> None:
    from rayfuse.api import prediction

    if target is None:
        raise SpecError("--output is missing; give the file of the predictions: .parquet, .jsonl or .csv")
    columns = None if keep is None else [name.strip() for name in keep.split(",") if name.strip()]
    given = {name: value for name, value in options.items() if value is not None}
    result = prediction.predict(
        model, url, target, keep=columns, resume=not no_resume, tracking_uri=tracking_uri, **given
    )
    output.print_result(result.to_dict(), str(result))


def _parse_fraction(text: str | None) -> float | None:
    if text is None:
        return None
    from pydantic import TypeAdapter, ValidationError

    from rayfuse.spec.base import Fraction

    try:
        return float(TypeAdapter(Fraction).validate_python(text))
    except ValidationError:
        raise click.BadParameter(f"{text}: expected a fraction from 0 to 1, such as 0.01 or 1%") from None


def parse_values(arguments: Sequence[str]) -> dict[str, list[Given]]:
    """Parse NAME=VALUE arguments to the values of each name.

    Raises SpecError for an argument of another form, and for a file that cannot be read.
    """
    values: dict[str, list[Given]] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise SpecError(f"{argument}: expected NAME=VALUE, or NAME=@FILE to read a file")
        one = _read_file(name, value[1:]) if value.startswith("@") else Given(value)
        values.setdefault(name, []).append(one)
    return values


def format_prediction(prediction: Mapping[str, Any]) -> str:
    """Format a prediction as text: a line per task, then the inputs used and the model."""
    lines = [f"{task}: {_format_output(found)}" for task, found in prediction["outputs"].items()]
    model = prediction.get("model", {})
    source = " ".join(str(model[key]) for key in ("name", "version") if model.get(key) is not None)
    used = ", ".join(prediction["inputs_used"])
    return "\n".join([*lines, f"from {used}" + (f", by {source}" if source else "")])


def _format_output(task_output: Mapping[str, Any]) -> str:
    if "scores" not in task_output:
        return f"{task_output['value']:.6g}" if "value" in task_output else str(task_output)
    best = sorted(task_output["scores"].items(), key=lambda pair: -pair[1])[:_TOP_K]
    chosen = (
        task_output["label"]
        if "label" in task_output
        else ", ".join(map(str, task_output["labels"])) or "none"
    )
    return f"{chosen}  ({', '.join(f'{label} {score:.1%}' for label, score in best)})"


def to_row(given: Mapping[str, Sequence[Given]], inputs: Mapping[str, "InputDescription"]) -> dict[str, Any]:
    """Convert parsed arguments to a row: bytes of files, texts, and parsed JSON for the rest.

    Raises SpecError for an unknown name, invalid JSON, and several values of an input that takes one.
    """
    row = {}
    for name, values in given.items():
        described = _find_input(name, inputs)
        if len(values) > 1 and described.max_items == 1:
            raise SpecError(f"{name}: given twice; this input takes one value")
        formats = described.formats if name in inputs else ()
        items = [_to_value(name, one, formats) for one in values]
        row[name] = items if described.max_items > 1 else items[0]
    return row


def _find_input(name: str, inputs: Mapping[str, "InputDescription"]) -> "InputDescription":
    """Return the input that is named, or that has the named column."""
    found = inputs.get(name) or next((one for one in inputs.values() if name in one.columns), None)
    if found is None:
        from rayfuse.spec.error_messages import suggest_nearest

        known = [*inputs, *(column for one in inputs.values() for column in one.columns)]
        raise SpecError(f"{name}: not an input of this model; {suggest_nearest(name, known)}")
    return found


def _to_value(name: str, given: Given, formats: Sequence[str]) -> Any:
    content = given.content
    if isinstance(content, bytes) and formats and "file" not in formats:
        content = _decode_text(name, content)
    if isinstance(content, bytes) or "json" not in formats:
        return content
    if "file" in formats and content.startswith("data:"):
        return content
    return (
        _parse_json(name, content) if "text" not in formats or given.filename.endswith(".json") else content
    )


def _parse_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{name}: invalid JSON: {error}") from None


def _decode_text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: not valid UTF-8 (byte {error.start})") from None


def _read_file(name: str, source: str) -> Given:
    filename = source.rstrip("/").rpartition("/")[2]
    try:
        if "://" not in source:
            return Given(Path(source).expanduser().read_bytes(), filename)
        import fsspec

        with fsspec.open(source, "rb") as file:
            return Given(file.read(), filename)
    except FileNotFoundError:
        raise SpecError(f"{name}: {source}: file not found") from None
    except Exception as error:  # noqa: BLE001 - each filesystem raises its own errors
        raise SpecError(f"{name}: {source}: cannot read the file: {type(error).__name__}: {error}") from None
