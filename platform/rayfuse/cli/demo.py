"""`rayfuse demo`: the whole main job on this machine."""

import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rayfuse.cli import output
from rayfuse.errors import SpecError

if TYPE_CHECKING:
    from rayfuse.demo.run import Addresses, Demo

_SPECS = ("jobs/digit_arithmetic.yaml", "serve/digit_arithmetic.yaml")


@click.command()
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C, and print where everything answers.")
@click.option("--prepare", is_flag=True, help="Only make the rows (data/) and the text model (models/).")
@output.set_option
@output.json_option
def demo(keep: bool, prepare: bool, overrides: tuple[str, ...]) -> None:
    """Make real data, train, gate, promote, serve, and ask over HTTP. Run it in a checkout of Rayfuse.

    --set changes the training job, as in --set train.epochs=2.
    """
    root = Path.cwd()
    for spec in _SPECS:
        if not (root / spec).is_file():
            raise SpecError(f"{spec}: no such file here; run `rayfuse demo` in a checkout of Rayfuse")
    from rayfuse.demo.run import prepare as make
    from rayfuse.demo.run import run

    if prepare:
        make(root, output.say)
        output.result({"data": str(root / "data"), "models": str(root / "models")}, "made data/ and models/")
        return
    found = run(root, overrides, output.say, _wait if keep else None)
    output.result(asdict(found), _summary(found))


def _wait(addresses: "Addresses") -> None:
    output.say(
        f"\nendpoint   {addresses.endpoint}/predict\nweb docs   {addresses.docs}\n"
        f"MLflow     {addresses.mlflow}\n"
        f"Ray        {addresses.dashboard} (it asks for the token in {addresses.token_file})\n\n"
        "Ctrl-C stops everything."
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        output.say("stopping")


def _summary(found: "Demo") -> str:
    accuracy = [[names, metrics["answer/accuracy"]] for names, metrics in found.by_inputs.items()]
    seconds = [[name, seconds] for name, seconds in found.seconds.items()]
    total = sum(found.seconds.values())
    return (
        f"\n{output.table(['given', 'accuracy on unseen rows'], accuracy)}\n\n"
        f"{output.table(['step', 'seconds'], [*seconds, ['all', total]])}"
    )
