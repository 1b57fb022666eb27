"""`rayfuse plan JOB`: memory of each worker, the smallest layout that fits, and training time."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output
from rayfuse.formatting import format_bytes

if TYPE_CHECKING:
    from rayfuse.estimate.planner import Layout, Plan, TimeEstimate

_BAR_WIDTH = 40
_MEMORY_PARTS = ("process", "samples", "weights", "gathered weights", "master weights", "ema weights", "optimizer",
          "gradients", "buffers", "activations")  # fmt: skip


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
@output.set_option
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
    from rayfuse.estimate.gpu_specs import find_gpu_spec
    from rayfuse.estimate.planner import Planner, PlanRequest
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec

    batch_size = {"train.batch_size": batch} if batch else {}
    job = load_spec(spec, Job, overrides | batch_size)
    request = PlanRequest(
        gpus, gpu_memory, find_gpu_spec(device) if device else None, memory, rows, dict(lengths)
    )
    found = Planner.from_job(job, request).plan()
    output.print_result(to_json(found), "\n".join(format_report(found)))


def to_json(plan: "Plan") -> dict[str, Any]:
    """Return the plan as JSON, with bytes and seconds."""
    parameters = {
        part.name: {"total": part.num_parameters, "trained": part.num_trainable}
        for part in plan.sizes.modules
    }
    return {
        "parameters": parameters,
        "precision": plan.precision,
        "device": "gpu" if plan.on_gpu else "cpu",
        "layouts": [_layout(layout) for layout in plan.layouts],
        "configured": _layout(plan.current),
        "smallest": _layout(plan.smallest) if plan.smallest else None,
        "activations": [vars(entry) for entry in plan.activations],
        "time": vars(plan.time) if plan.time else None,
        "notes": plan.notes,
    }


def _layout(layout: "Layout") -> dict[str, Any]:
    return {
        "workers": layout.workers,
        "stage": layout.stage,
        "offload": layout.offload,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
        "rows": layout.micro_batch_size,
        "worst_phase": layout.phase.name,
        "bytes": layout.phase.device,
        "total_bytes": layout.phase.total,
        "available_bytes": layout.memory_limit,
        "host_bytes": layout.host_bytes,
        "fits": layout.fits,
    }


def format_report(plan: "Plan") -> Iterable[str]:
    """Yield the lines of the report."""
    yield from plan.notes
    yield ""
    yield _parameters(plan)
    yield ""
    where = "GPU" if plan.on_gpu else "worker"
    yield f"peak memory of each {where} by ZeRO stage ({plan.precision}):"
    yield _table(plan.layouts)
    yield ""
    yield from _memory_bars(plan.current)
    yield ""
    yield "activations of a micro-batch, saved for the backward pass and at the peak:"
    yield output.table(
        ("rows", "lengths", "saved", "peak"),
        [
            (
                entry.micro_batch_size,
                f"{entry.length_fraction:.0%}",
                format_bytes(entry.saved),
                format_bytes(entry.peak),
            )
            for entry in plan.activations
        ],
    )
    yield ""
    yield _recommendation(plan)
    yield _time_estimate(plan.time) if plan.time else "time: unknown without --device"


def _parameters(plan: "Plan") -> str:
    rows: list[tuple[object, ...]] = [
        (part.name, f"{part.num_parameters:,}", f"{part.num_trainable:,}") for part in plan.sizes.modules
    ]
    total = sum(part.num_parameters for part in plan.sizes.modules)
    trained = sum(part.num_trainable for part in plan.sizes.modules)
    return output.table(("part", "parameters", "trained"), [*rows, ("all", f"{total:,}", f"{trained:,}")])


def _table(layouts: Iterable["Layout"]) -> str:
    layouts = list(layouts)
    names = [name for name in _MEMORY_PARTS if any(layout.phase.device.get(name) for layout in layouts)]
    host = any(layout.host_bytes for layout in layouts)
    header = [
        "workers",
        "stage",
        "offload",
        *names,
        "total",
        *(["host"] if host else []),
        "fits",
        "peak in",
    ]
    rows = [
        [
            layout.workers,
            layout.stage,
            layout.offload,
            *(format_bytes(layout.phase.device.get(name, 0)) for name in names),
            format_bytes(layout.phase.total),
            *([format_bytes(layout.host_bytes)] if host else []),
            "yes" if layout.fits else "NO",
            layout.phase.name,
        ]
        for layout in layouts
    ]
    return output.table(header, rows)


def _memory_bars(layout: "Layout") -> Iterable[str]:
    yield f"the job as configured: {_describe_layout(layout)}, in {layout.phase.name}:"
    amounts: Mapping[str, int] = layout.phase.device
    for name in _MEMORY_PARTS:
        if amounts.get(name):
            bar = "█" * max(1, round(_BAR_WIDTH * amounts[name] / layout.phase.total))
            yield f"  {name:<17}{format_bytes(amounts[name]):>9}  {bar}"
    yield f"  {'total':<17}{format_bytes(layout.phase.total):>9}  of {format_bytes(layout.memory_limit)}"


def _describe_layout(layout: "Layout") -> str:
    offload = "" if layout.offload == "none" else f", offload {layout.offload}"
    return (
        f"{layout.workers} worker{'s' * (layout.workers > 1)}, ZeRO stage {layout.stage}{offload}, "
        f"{layout.micro_batch_size} rows per micro-batch"
    )


def _recommendation(plan: "Plan") -> str:
    if plan.smallest is None:
        return (
            "no layout fits, down to micro-batches of one row; use more or larger devices, shorter inputs, a smaller encoder, "
            "or adapters instead of train: full"
        )
    found = plan.smallest
    changes = [f"compute.workers={found.workers}", *(["compute.gpus_per_worker=1"] if plan.on_gpu else [])]
    changes += [f"train.deepspeed.stage={found.stage}"]
    changes += [f"train.deepspeed.offload.{part}=cpu" for part in found.offload.split("+") if part != "none"]
    changes += (
        [f"train.gradient_accumulation_steps={found.gradient_accumulation_steps}"]
        if found.gradient_accumulation_steps > 1
        else []
    )
    return (
        f"smallest layout that fits: {_describe_layout(found)}: {format_bytes(found.phase.total)} of {format_bytes(found.memory_limit)}\n  "
        + " ".join(f"--set {change}" for change in changes)
    )


def _time_estimate(time: "TimeEstimate") -> str:
    return (
        f"time: about {_format_duration(time.step)} a step, {_format_duration(time.total)} for {time.steps:,} steps and validation, at "
        f"{time.basis}; without communication and waiting for data"
    )


def _format_duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
