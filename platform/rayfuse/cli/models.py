"""`rayfuse models list|show|promote|rollback|register-voice`: registered models and their aliases."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import click

from rayfuse.cli import output
from rayfuse.errors import SpecError
from rayfuse.formatting import metric_table, table

_ALIASES = ("champion", "candidate", "previous")
_VOICE_COLUMNS = ("version", "aliases", "created", "decision")
_VOICE_FACTS = ("language", "sample_rate", "phonemizer", "license")


def _tracking_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--tracking-uri",
        "tracking_uri",
        metavar="URI",
        help="MLflow server, database file or folder.  [default: MLFLOW_TRACKING_URI, else runs/mlflow.db]",
    )(command)


@click.group()
def models() -> None:
    """List, show, promote and roll back registered models, and register voices."""


@models.command("list")
@_tracking_option
@output.json_option
def list_(tracking_uri: str | None) -> None:
    """List the registered models."""
    from rayfuse.api import registry

    found = registry.list_models(tracking_uri)
    rows = [
        [
            model["name"],
            model["versions"],
            *(model["aliases"].get(alias) for alias in _ALIASES),
            model["metric"],
            model["value"],
        ]
        for model in found
    ]
    text = table(["name", "versions", *_ALIASES, "metric", "value"], rows)
    output.print_result({"models": found}, text if rows else "no registered models")


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def show(name: str, tracking_uri: str | None) -> None:
    """Show the versions of the model NAME, the newest first."""
    from rayfuse.api import registry

    found = registry.describe_model(name, tracking_uri)
    if any("voice" in version for version in found["versions"]):
        output.print_result(found, table([*_VOICE_COLUMNS, *_VOICE_FACTS], _voice_rows(found)))
        return
    parts = [
        table(["version", "aliases", "created", "decision", "evaluated on", "metric", "value"], _rows(found))
    ]
    champion = next((v for v in found["versions"] if "champion" in v["aliases"]), None)
    newest = champion or next(iter(found["versions"]), None)
    if newest and newest["by_inputs"]:
        parts.append(f"version {newest['version']} by inputs:\n{metric_table(newest['by_inputs'])}")
    output.print_result(found, "\n\n".join(parts))


@models.command(short_help="Promote the candidate to champion if it passes the gates.")
@click.argument("name")
@click.option(
    "--min",
    "minimum",
    metavar="METRIC=BOUND",
    multiple=True,
    help="Bound of a metric, as in answer/accuracy=0.9: a minimum, or a maximum for losses and errors. May be repeated.",
)
@click.option(
    "--tolerance",
    default=0.01,
    show_default=True,
    help="Largest allowed regression from the champion.",
)
@click.option(
    "--gate",
    "gates",
    metavar="GATE",
    multiple=True,
    help="A further gate: MODULE:CLASS of a custom one, or a JSON block, as in "
    '\'{"type": "no_regression", "tolerance": 0.02}\'. May be repeated. It replaces a default gate of the same type.',
)
@click.option("--force", is_flag=True, help="Promote even if a gate fails; the record is marked as forced.")
@_tracking_option
@output.json_option
def promote(
    name: str,
    minimum: tuple[str, ...],
    tolerance: float,
    gates: tuple[str, ...],
    force: bool,
    tracking_uri: str | None,
) -> None:
    """Promote the candidate of the model NAME to champion if it passes the gates.

    The gates require that its metrics reach every --min, and that it is not worse than the champion on the evaluation
    rows and with every subset of inputs that a request may have. If a gate fails, the exit code is 3.
    """
    from rayfuse.api import registry

    decision = registry.promote(
        name,
        thresholds=_parse_thresholds(minimum),
        tolerance=tolerance,
        gates=gates,
        force=force,
        tracking_uri=tracking_uri,
    )
    output.print_result(decision.to_dict(), decision.text())


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def rollback(name: str, tracking_uri: str | None) -> None:
    """Restore the previous champion of the model NAME."""
    from rayfuse.api import registry

    decision = registry.rollback(name, tracking_uri=tracking_uri)
    output.print_result(decision.to_dict(), decision.text())


@models.command("register-voice", short_help="Register a speech voice of Piper.")
@click.argument("folder")
@click.option("--name", required=True, help="Name of the registered model.")
@click.option(
    "--license", help="License of the voice, as in CC0-1.0.  [default: that of MODEL_CARD in the folder]"
)
@click.option(
    "--phonemizer",
    type=click.Choice(["dictionary", "espeak"]),
    help="Way from texts to phonemes: the English dictionary of the extra `speech`, or eSpeak NG (GPL-3), which you install "
    "yourself: pip install espeakng-loader.  [default: dictionary]",
)
@_tracking_option
@output.json_option
def register_voice(
    folder: str,
    name: str,
    license: str | None,
    phonemizer: Literal["dictionary", "espeak"] | None,
    tracking_uri: str | None,
) -> None:
    """Register the Piper voice in FOLDER (VOICE.onnx and VOICE.onnx.json) as the next version of a model.

    The version becomes its candidate. The same files again are the same version.
    """
    from rayfuse.api import registry

    voice = registry.register_voice(
        folder, name, license=license, phonemizer=phonemizer, tracking_uri=tracking_uri
    )
    output.print_result(voice.to_dict(), str(voice))


def _parse_thresholds(texts: Iterable[str]) -> dict[str, float]:
    """Parse `("answer/accuracy=0.9", …)` to bounds by metric. Raises SpecError if a text is invalid."""
    thresholds: dict[str, float] = {}
    for text in texts:
        metric, _, bound = text.partition("=")
        try:
            thresholds[metric] = float(bound)
        except ValueError:
            raise SpecError(f"--min {text}: write --min METRIC=BOUND, as in answer/accuracy=0.9") from None
    return thresholds


def _voice_rows(model: Mapping[str, Any]) -> list[list[object]]:
    return [
        [*_first_cells(version), *(version.get("voice", {}).get(fact) for fact in _VOICE_FACTS)]
        for version in model["versions"]
    ]


def _first_cells(version: Mapping[str, Any]) -> list[object]:
    return [
        version["version"],
        ", ".join(version["aliases"]) or "-",
        version["created"][:19].replace("T", " "),
        (version["decision"] or {}).get("decision", "-"),
    ]


def _rows(model: Mapping[str, Any]) -> list[list[object]]:
    return [
        [
            *_first_cells(version),
            version["split"],
            version["metric"],
            version["metrics"].get(version["split"], {}).get(version["metric"]),
        ]
        for version in model["versions"]
    ]
