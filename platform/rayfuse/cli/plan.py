"""`rayfuse plan JOB`: memory of each worker, the smallest layout that fits, and training time."""

from typing import Any

import click

from rayfuse.cli import output


class Size(click.ParamType[int]):
    """Option type for a size in bytes: 24GB, 80GiB, 512M."""

    name = "size"
    """Name of the type in the help."""

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. Fails for zero and unknown units."""
        from rayfuse.spec.base import parse_size

        if isinstance(value, int):
            return value
        try:
            size = parse_size(value)
        except ValueError:
            size = 0
        if not size:
            self.fail(f"{value!r} is not a size; use a number with a unit, such as 24GB or 80GiB", param, ctx)
        return size


class Length(click.ParamType[tuple[str, float]]):
    """Option type for INPUT=NUMBER."""

    name = "length"
    """Name of the type in the help."""

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return the name and the number."""
        name, _, number = str(value).partition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r} is not INPUT=NUMBER; use a number, as in text=128", param, ctx)


@click.command()
@click.argument("spec", metavar="JOB")
@output.set_option("train.batch_size=128")
@click.option("--gpus", type=click.IntRange(min=1), help="Number of GPUs to plan for.")
@click.option("--gpu-memory", type=Size(), help="Memory of each GPU, such as 24GB.")
@click.option("--device", metavar="NAME", help="Known GPU, such as H100, for its memory and speed.")
@click.option(
    "--memory", type=Size(), help="Host memory of all workers on a CPU; by default that of this machine."
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Rows of a global batch, instead of train.batch_size."
)
@click.option(
    "--length", "lengths", type=Length(), metavar="INPUT=N", multiple=True,
    help="Length of an input in tokens, seconds, frames, steps or items, such as text=128.",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(min=1), help="Number of training rows; the data is not read.")
@output.json_option
def plan(
    spec: str,
    overrides: dict[str, Any],
    gpus: int | None,
    gpu_memory: int | None,
    device: str | None,
    memory: int | None,
    batch: int | None,
    lengths: tuple[tuple[str, float], ...],
    rows: int | None,
) -> None:
    """Estimate memory by layout and training time of the job in the YAML file JOB, without starting it."""
    from rayfuse.api.planning import plan as plan_job

    batch_size = {"train.batch_size": batch} if batch else {}
    found = plan_job(
        spec,
        gpus=gpus,
        gpu_memory=gpu_memory,
        device=device,
        memory=memory,
        rows=rows,
        lengths=dict(lengths),
        **overrides,
        **batch_size,
    )
    output.print_result(found.to_dict(), str(found))
