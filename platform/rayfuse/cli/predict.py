"""`rayfuse predict MODEL NAME=VALUE …`: one prediction, from a model or an endpoint."""

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
@output.json_option
def predict(model: str, values: tuple[str, ...], tracking_uri: str | None) -> None:
    """Predict with MODEL: models:/NAME@ALIAS, a model folder, or the URL of an endpoint.

    Each input is NAME=VALUE; `NAME=@FILE` reads a file or URL, as in image=@digit.png text="is it even?". Time series,
    columns and item sequences are JSON, as in patient='{"age": 61}'; repeat the name of an input that takes several
    values. Set RAYFUSE_API_KEY for an endpoint with API keys.
    """
    from rayfuse.api.models import load_model

    given = parse_values(values)
    loaded = load_model(model, tracking_uri=tracking_uri)
    try:
        prediction = loaded.predict(to_row(given, loaded.inputs))
    except InvalidInputError as error:
        raise SpecError(str(error)) from None
    output.print_result(prediction, format_prediction(prediction))


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
        return content.decode("utf-8")
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
