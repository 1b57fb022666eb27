"""`rayfuse predict MODEL NAME=VALUE …`: one answer, from a model or from an endpoint."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rayfuse.cli import output
from rayfuse.errors import BadInput, SpecError

_SCORES = 3
"""How many of a classification's scores people are shown."""


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("values", metavar="NAME=VALUE...", nargs=-1)
@click.option("--tracking", metavar="URI", help="MLflow server or database, for models:/…")
@output.json_option
def predict(model: str, values: tuple[str, ...], tracking: str | None) -> None:
    """Ask MODEL once: models:/NAME@ALIAS, a model folder, or the URL of an endpoint.

    Each input is NAME=VALUE; `NAME=@FILE` reads a file or URL, as in image=@digit.png text="is it even?". Readings,
    columns and histories are JSON, as in patient='{"age": 61}'; an input that takes several values is named several
    times.
    An endpoint with keys wants one of them in RAYFUSE_API_KEY.
    """
    given = read_values(values)
    answer = _ask_endpoint(model, given) if _is_endpoint(model) else _ask_model(model, given, tracking)
    output.result(answer, render(answer))


def read_values(arguments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE arguments; a value read from a file is (file name, bytes), and a name given again has Several.

    Raises SpecError for one of another form, or whose file cannot be read.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise SpecError(f"{argument}: write NAME=VALUE, or NAME=@FILE to read a file")
        one = _read(name, value[1:]) if value.startswith("@") else value
        values[name] = _another(values[name], one) if name in values else one
    return values


def _another(before: Any, one: Any) -> Any:
    from rayfuse.serve.client import Several

    return Several([*(before if isinstance(before, Several) else [before]), one])


def render(answer: Mapping[str, Any]) -> str:
    """An answer for people: one line per task, then what it is based on."""
    lines = [f"{task}: {_one(found)}" for task, found in answer["outputs"].items()]
    model = answer.get("model", {})
    source = " ".join(str(model[key]) for key in ("name", "version") if model.get(key) is not None)
    used = ", ".join(answer["inputs_used"])
    return "\n".join([*lines, f"from {used}" + (f", by {source}" if source else "")])


def _one(found: Mapping[str, Any]) -> str:
    if "scores" not in found:
        return f"{found['value']:.6g}" if "value" in found else str(found)
    best = sorted(found["scores"].items(), key=lambda pair: -pair[1])[:_SCORES]
    answer = found["label"] if "label" in found else ", ".join(map(str, found["labels"])) or "none"
    return f"{answer}  ({', '.join(f'{label} {score:.1%}' for label, score in best)})"


def _is_endpoint(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _ask_endpoint(url: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from rayfuse.serve.client import ask

    try:
        return ask(url, given, os.environ.get("RAYFUSE_API_KEY"))
    except SpecError as error:
        raise SpecError(_with_hint(str(error), given)) from None


def _ask_model(model: str, given: Mapping[str, Any], tracking: str | None) -> dict[str, Any]:
    from rayfuse.model.predictor import Predictor
    from rayfuse.registry.fetching import fetch

    found = fetch(model, tracking)
    predictor = Predictor(found.folder)
    try:
        [answer] = predictor.predict([as_values(given, predictor.job.inputs)])
    except BadInput as error:
        raise SpecError(_with_hint(str(error), given)) from None
    about = {"name": found.name or predictor.job.registered_name, "version": found.version}
    return {**answer, "model": about}


def as_values(given: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a model with these inputs reads them: bytes of files, texts, and what JSON means for the rest."""
    from rayfuse.modalities import MODALITIES
    from rayfuse.serve.client import Several

    values = {}
    for name, value in given.items():
        several = isinstance(value, Several)
        if several and name in inputs and inputs[name].max_items == 1:
            raise SpecError(f"{name}: given twice")
        forms = MODALITIES[inputs[name].type].forms if name in inputs else ()
        read = [_as_value(name, one, forms) for one in (value if several else [value])]
        takes_list = name in inputs and inputs[name].max_items > 1
        values[name] = read if takes_list else read[0]
    return values


def _as_value(name: str, value: Any, forms: Sequence[str]) -> Any:
    filename, content = value if isinstance(value, tuple) else ("", value)
    if isinstance(content, bytes) and "file" not in forms:
        content = _text(name, content)
    if isinstance(content, bytes) or "json" not in forms:
        return content
    return _json(name, content) if "text" not in forms or filename.endswith(".json") else content


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{name}: not JSON: {error}") from None


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: not UTF-8 (byte {error.start})") from None


def _read(name: str, source: str) -> tuple[str, bytes]:
    filename = source.rstrip("/").rpartition("/")[2]
    try:
        if "://" not in source:
            return filename, Path(source).expanduser().read_bytes()
        import fsspec

        with fsspec.open(source, "rb") as file:
            return filename, file.read()
    except FileNotFoundError:
        raise SpecError(f"{name}: {source}: no such file") from None
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise SpecError(f"{name}: {source}: cannot be read: {type(error).__name__}: {error}") from None


def _with_hint(message: str, given: Mapping[str, Any]) -> str:
    """A forgotten @ is the likeliest reason why a file's name was taken for its content."""
    name = message.partition(":")[0]
    value = given.get(name)
    if isinstance(value, str) and Path(value).expanduser().is_file():
        return f"{message}; did you mean {name}=@{value}?"
    return message
