"""`rayfuse models list|show|promote|rollback`: the registered models and their aliases."""

from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow import MlflowClient

_ALIASES = ("champion", "candidate", "previous")


def _tracking_option(command: "Callable[..., Any]") -> "Callable[..., Any]":
    return click.option(
        "--tracking",
        metavar="URI",
        help="MLflow server, database file or folder; MLFLOW_TRACKING_URI, else runs/mlflow.db, where absent.",
    )(command)


@click.group()
def models() -> None:
    """The registry: list, show, promote, rollback."""


@models.command("list")
@_tracking_option
@output.json_option
def list_(tracking: str | None) -> None:
    """List the registered models."""
    from rayfuse.registry.versions import list_models

    found = list_models(_client(tracking))
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
    text = output.table(["name", "versions", *_ALIASES, "metric", "value"], rows)
    output.result({"models": found}, text if rows else "no registered models")


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def show(name: str, tracking: str | None) -> None:
    """Show all versions of the model NAME, the newest first."""
    from rayfuse.registry.versions import show as show_model

    found = show_model(_client(tracking), name)
    parts = [
        output.table(
            ["version", "aliases", "created", "decision", "judged on", "metric", "value"], _rows(found)
        )
    ]
    champion = next((v for v in found["versions"] if "champion" in v["aliases"]), None)
    newest = champion or next(iter(found["versions"]), None)
    if newest and newest["by_inputs"]:
        parts.append(f"version {newest['version']} by inputs:\n{by_inputs_table(newest['by_inputs'])}")
    output.result(found, "\n\n".join(parts))


@models.command()
@click.argument("name")
@click.option(
    "--min",
    "minimum",
    metavar="METRIC=BOUND",
    multiple=True,
    help="What the candidate must reach, as in answer/accuracy=0.9; a bound from above for losses and errors.",
)
@click.option(
    "--tolerance",
    default=0.01,
    show_default=True,
    help="By how much the candidate may be worse than the champion.",
)
@click.option(
    "--force", is_flag=True, help="Promote whatever the gates say; the record says that it was forced."
)
@_tracking_option
@output.json_option
def promote(name: str, minimum: tuple[str, ...], tolerance: float, force: bool, tracking: str | None) -> None:
    """Let the gates judge the candidate of the model NAME, and make it the champion.

    The gates: its metrics reach every --min; and it is not worse than the champion, on the rows as they are and with
    every subset of inputs that a caller may send. A refusal ends with exit code 3.
    """
    from rayfuse.registry.deciding import promote as decide
    from rayfuse.registry.gates import read_bounds

    bounds = read_bounds(minimum)
    decision = decide(_client(tracking), name, bounds, tolerance, force, say=output.say)
    output.result(decision.plain(), decision.text())


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def rollback(name: str, tracking: str | None) -> None:
    """Make the previous champion of the model NAME the champion again."""
    from rayfuse.registry.deciding import rollback as decide

    decision = decide(_client(tracking), name)
    output.result(decision.plain(), decision.text())


def by_inputs_table(by_inputs: "Mapping[str, Mapping[str, float]]") -> str:
    """A line per subset of the inputs, a column per metric but for the averages of many classes."""
    shown = [
        name
        for name in next(iter(by_inputs.values()))
        if not name.endswith(("_micro", "_macro", "_weighted"))
    ]
    return output.table(
        ["inputs", *shown],
        [[name, *(found[metric] for metric in shown)] for name, found in by_inputs.items()],
    )


def _client(tracking: str | None) -> "MlflowClient":
    from rayfuse.registry.tracking import connect, tracking_uri

    return connect(tracking_uri(tracking), create=False)


def _rows(found: "Mapping[str, Any]") -> list[list[object]]:
    return [
        [
            version["version"],
            ", ".join(version["aliases"]) or "-",
            version["created"][:19].replace("T", " "),
            (version["decision"] or {}).get("decision", "-"),
            version["split"],
            version["metric"],
            version["metrics"].get(version["split"], {}).get(version["metric"]),
        ]
        for version in found["versions"]
    ]
