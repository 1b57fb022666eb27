"""`rayfuse demo`: run the whole workflow on this machine."""

import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.errors import SpecError
from rayfuse.formatting import table

if TYPE_CHECKING:
    from rayfuse.demo.run import Addresses, DemoResult

_SPECS = ("jobs/digit_arithmetic.yaml", "serve/digit_arithmetic.yaml")


@click.command()
@click.option("--keep", is_flag=True, help="Keep the endpoint, Ray and MLflow running until Ctrl-C.")
@click.option(
    "--prepare", is_flag=True, help="Only make the data set (data/) and the text encoder (models/)."
)
@output.set_option("train.epochs=3")
@output.json_option
def demo(keep: bool, prepare: bool, overrides: dict[str, Any]) -> None:
    """Make a data set, train, promote and serve a model, and predict over HTTP. Run it in a checkout of Rayfuse.

    --set overrides values of the training job, such as train.epochs=2.
    """
    root = Path.cwd()
    for spec in _SPECS:
        if not (root / spec).is_file():
            raise SpecError(f"{spec}: no such file; run `rayfuse demo` in a checkout of Rayfuse")
    from rayfuse.demo import run

    if prepare:
        run.prepare(root)
        folders = {"data": str(root / "data"), "models": str(root / "models")}
        output.print_result(folders, f"data set: {folders['data']}\ntext encoder: {folders['models']}")
        return
    result = run.run(root, overrides, _wait_for_interrupt if keep else None)
    output.print_result(asdict(result), _summary(result))


def _wait_for_interrupt(addresses: "Addresses") -> None:
    output.echo(
        f"\nendpoint   {addresses.endpoint}/predict\ndocs       {addresses.docs}\n"
        f"MLflow     {addresses.mlflow}\n"
        f"Ray        {addresses.dashboard}  (token: {addresses.token_file})\n\n"
        "Press Ctrl-C to stop."
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        output.log("stopping")


def _summary(result: "DemoResult") -> str:
    accuracy = [[names, metrics["answer/accuracy"]] for names, metrics in result.by_inputs.items()]
    seconds = [[name, seconds] for name, seconds in result.seconds.items()]
    total = sum(result.seconds.values())
    return (
        f"\n{table(['inputs', 'test accuracy'], accuracy)}\n\n"
        f"{table(['step', 'seconds'], [*seconds, ['total', total]])}"
    )
