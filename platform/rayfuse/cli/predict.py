"""`rayfuse predict MODEL NAME=VALUE …`: one prediction, from a model or an endpoint."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rayfuse.cli import output
from rayfuse.errors import InvalidInputError, SpecError

_TOP_K = 3
"""Number of a classification's scores that are printed."""


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
    given = parse_values(values)
    prediction = (
        _predict_endpoint(model, given) if _is_endpoint(model) else _predict_model(model, given, tracking_uri)
    )
    output.print_result(prediction, format_prediction(prediction))


def parse_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE arguments; a file is parsed to (file name, bytes), a repeated name to MultipleValues.

    Raises SpecError for an argument of another form, and for a file that cannot be read.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise SpecError(f"{argument}: expected NAME=VALUE, or NAME=@FILE to read a file")
        one = _read_file(name, value[1:]) if value.startswith("@") else value
        values[name] = _append_value(values[name], one) if name in values else one
    return values


def _append_value(before: Any, one: Any) -> Any:
    from rayfuse.serving.client import MultipleValues

    return MultipleValues([*(before if isinstance(before, MultipleValues) else [before]), one])


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


def _is_endpoint(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _predict_endpoint(url: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from rayfuse.serving.client import predict

    try:
        return predict(url, given, os.environ.get("RAYFUSE_API_KEY"))
    except InvalidInputError as error:
        raise SpecError(_with_hint(error, given)) from None


def _predict_model(model: str, given: Mapping[str, Any], tracking_uri: str | None) -> dict[str, Any]:
    from rayfuse.model.predictor import Predictor
    from rayfuse.registry.download import fetch

    found = fetch(model, tracking_uri)
    predictor = Predictor(found.folder)
    try:
        [prediction] = predictor.predict([to_model_inputs(given, predictor.job.inputs)])
    except InvalidInputError as error:
        raise SpecError(_with_hint(error, given)) from None
    about = {"name": found.name or predictor.job.registered_model_name, "version": found.version}
    return {**prediction, "model": about}


def to_model_inputs(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parsed arguments to a model's values: bytes of files, texts, and parsed JSON for the rest.

    Raises SpecError for invalid JSON, and for several values of an input that takes one.
    """
    from rayfuse.modalities import modality_class
    from rayfuse.serving.client import MultipleValues

    values = {}
    for name, value in given.items():
        several = isinstance(value, MultipleValues)
        if several and name in inputs and inputs[name].max_items == 1:
            raise SpecError(f"{name}: given twice; this input takes one value")
        forms = modality_class(inputs[name]).value_formats if name in inputs else ()
        read = [_to_model_input(name, one, forms) for one in (value if several else [value])]
        takes_list = name in inputs and inputs[name].max_items > 1
        values[name] = read if takes_list else read[0]
    return values


def _to_model_input(name: str, value: Any, forms: Sequence[str]) -> Any:
    filename, content = value if isinstance(value, tuple) else ("", value)
    if isinstance(content, bytes) and "file" not in forms:
        content = _decode_text(name, content)
    if isinstance(content, bytes) or "json" not in forms:
        return content
    return _parse_json(name, content) if "text" not in forms or filename.endswith(".json") else content


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


def _read_file(name: str, source: str) -> tuple[str, bytes]:
    filename = source.rstrip("/").rpartition("/")[2]
    try:
        if "://" not in source:
            return filename, Path(source).expanduser().read_bytes()
        import fsspec

        with fsspec.open(source, "rb") as file:
            return filename, file.read()
    except FileNotFoundError:
        raise SpecError(f"{name}: {source}: file not found") from None
    except Exception as error:  # noqa: BLE001 - each filesystem raises its own errors
        raise SpecError(f"{name}: {source}: cannot read the file: {type(error).__name__}: {error}") from None


def _with_hint(error: InvalidInputError, given: Mapping[str, Any]) -> str:
    """Suggest @ if a value is the name of an existing file."""
    name = error.input_name or ""
    value = given.get(name)
    if isinstance(value, str) and Path(value).expanduser().is_file():
        return f"{error}; did you mean {name}=@{value}?"
    return str(error)
