"""`rayfuse models list|show|promote|rollback`: registered models and their aliases."""

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
        "tracking_uri",
        metavar="URI",
        help="MLflow server, database file or folder.  [default: MLFLOW_TRACKING_URI, else runs/mlflow.db]",
    )(command)


@click.group()
def models() -> None:
    """List, show, promote and roll back registered models."""


@models.command("list")
@_tracking_option
@output.json_option
def list_(tracking_uri: str | None) -> None:
    """List the registered models."""
    from rayfuse.registry.versions import list_models

    found = list_models(_client(tracking_uri))
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
    output.print_result({"models": found}, text if rows else "no registered models")


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def show(name: str, tracking_uri: str | None) -> None:
    """Show the versions of the model NAME, the newest first."""
    from rayfuse.registry.versions import describe_model as show_model

    found = show_model(_client(tracking_uri), name)
    parts = [
        output.table(
            ["version", "aliases", "created", "decision", "evaluated on", "metric", "value"], _rows(found)
        )
    ]
    champion = next((v for v in found["versions"] if "champion" in v["aliases"]), None)
    newest = champion or next(iter(found["versions"]), None)
    if newest and newest["by_inputs"]:
        parts.append(f"version {newest['version']} by inputs:\n{by_inputs_table(newest['by_inputs'])}")
    output.print_result(found, "\n\n".join(parts))


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
    "--gate",
    "gates",
    metavar="GATE",
    multiple=True,
    help="A further gate: MODULE:CLASS of a custom one, or a JSON block, as in "
    '\'{"type": "no_regression", "tolerance": 0.02}\'; repeatable. It replaces a default gate of the same type.',
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
    from rayfuse.registry.gates import default_gates, parse_gate, parse_thresholds
    from rayfuse.registry.promotion import promote as decide

    thresholds = parse_thresholds(minimum)
    chosen = default_gates(thresholds, tolerance, [parse_gate(gate) for gate in gates])
    decision = decide(_client(tracking_uri), name, force=force, log=output.log, gates=chosen)
    output.print_result(decision.to_dict(), decision.text())


@models.command()
@click.argument("name")
@_tracking_option
@output.json_option
def rollback(name: str, tracking_uri: str | None) -> None:
    """Restore the previous champion of the model NAME."""
    from rayfuse.registry.promotion import rollback as decide

    decision = decide(_client(tracking_uri), name)
    output.print_result(decision.to_dict(), decision.text())


def by_inputs_table(by_inputs: "Mapping[str, Mapping[str, float]]") -> str:
    """Format a table with a row per subset of inputs and a column per metric, without averages over classes."""
    shown = [
        name
        for name in next(iter(by_inputs.values()))
        if not name.endswith(("_micro", "_macro", "_weighted"))
    ]
    return output.table(
        ["inputs", *shown],
        [[name, *(found[metric] for metric in shown)] for name, found in by_inputs.items()],
    )


def _client(tracking_uri: str | None) -> "MlflowClient":
    from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri

    return connect(resolve_tracking_uri(tracking_uri), create=False)


def _rows(model: "Mapping[str, Any]") -> list[list[object]]:
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
        for version in model["versions"]
    ]
