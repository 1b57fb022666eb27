"""`rayfuse plan JOB`: memory of each worker, the smallest layout that fits, and time, before anything starts."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from rayfuse.cli import output

if TYPE_CHECKING:
    from rayfuse.train.plan.planning import Layout, Plan, Time

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", start=1)}
_BAR = 40
_SHOWN = ("process", "samples", "weights", "gathered weights", "master weights", "averaged weights", "optimizer",
          "gradients", "buffers", "activations")  # fmt: skip


class Size(click.ParamType[int]):
    """A number of bytes: 24GB, 80GiB, 512M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", str(value), re.IGNORECASE)
        unit = found and found[2][:1].upper() + found[2][1:].lower()
        if not found or unit not in _UNITS or not float(found[1]):
            self.fail(f"{value!r} is no size; write it as in 24GB or 80GiB", param, ctx)
        return round(float(found[1]) * _UNITS[unit])


class Length(click.ParamType[tuple[str, float]]):
    """INPUT=NUMBER."""

    name = "length"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, _, number = str(value).partition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r}: write INPUT=NUMBER, as in text=128", param, ctx)


@click.command()
@click.argument("spec", metavar="JOB")
@output.set_option
@click.option("--gpus", type=click.IntRange(min=1), help="Plan for so many GPUs.")
@click.option("--gpu-memory", type=Size(), help="Memory of each, as in 24GB.")
@click.option("--device", metavar="NAME", help="A known card, as in H100: its memory and its speed.")
@click.option(
    "--memory", type=Size(), help="Host memory that all workers share, on a CPU; else this machine's."
)
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a global batch, for train.batch_size.")
@click.option(
    "--length", "lengths", type=Length(), metavar="INPUT=N", multiple=True,
    help="Tokens, seconds, frames, steps or items of an input, as in text=128.",
)  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(min=1), help="Do not read the data: there are so many training rows."
)
@output.json_option
def plan(
    spec: str,
    overrides: tuple[str, ...],
    gpus: int | None,
    gpu_memory: int | None,
    device: str | None,
    memory: int | None,
    batch: int | None,
    lengths: tuple[tuple[str, float], ...],
    rows: int | None,
) -> None:
    """Say what the job in the YAML file JOB takes: memory of a worker by layout, and time. Nothing is started."""
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train.plan.cards import card
    from rayfuse.train.plan.planning import Planner, Question

    wanted = [*overrides, *([f"train.batch_size={batch}"] if batch else [])]
    job = load_spec(spec, Job, wanted)
    question = Question(gpus, gpu_memory, card(device) if device else None, memory, rows, dict(lengths))
    found = Planner.of(job, question).plan()
    output.result(as_json(found), "\n".join(report(found)))


def as_json(plan: "Plan") -> dict[str, Any]:
    """All of it, bytes and seconds."""
    parameters = {part.name: {"total": part.total, "trained": part.trained} for part in plan.sizes.parts}
    return {
        "parameters": parameters,
        "precision": plan.precision,
        "device": "gpu" if plan.on_gpu else "cpu",
        "layouts": [_layout(layout) for layout in plan.layouts],
        "own": _layout(plan.own),
        "smallest": _layout(plan.smallest) if plan.smallest else None,
        "activations": [vars(entry) for entry in plan.activations],
        "time": vars(plan.time) if plan.time else None,
        "told": plan.told,
    }


def _layout(layout: "Layout") -> dict[str, Any]:
    return {
        "workers": layout.workers,
        "stage": layout.stage,
        "offload": layout.offload,
        "accumulate": layout.accumulate,
        "rows": layout.rows,
        "worst_phase": layout.phase.name,
        "bytes": layout.phase.device,
        "total_bytes": layout.phase.total,
        "room_bytes": layout.room,
        "host_bytes": layout.host,
        "fits": layout.fits,
    }


def report(plan: "Plan") -> Iterable[str]:
    """Lines for people."""
    yield from plan.told
    yield ""
    yield _parameters(plan)
    yield ""
    where = "GPU" if plan.on_gpu else "worker's process"
    yield f"memory of each {where} at its worst moment, by ZeRO stage ({plan.precision}):"
    yield _table(plan.layouts)
    yield ""
    yield from _picture(plan.own)
    yield ""
    yield "activations of a micro-batch, kept for the backward pass and at most:"
    yield output.table(
        ("rows", "lengths", "kept", "at most"),
        [
            (entry.rows, f"{entry.share:.0%}", size(entry.kept), size(entry.peak))
            for entry in plan.activations
        ],
    )
    yield ""
    yield _verdict(plan)
    yield _duration(plan.time) if plan.time else "time: not known without --device"


def _parameters(plan: "Plan") -> str:
    rows: list[tuple[object, ...]] = [
        (part.name, f"{part.total:,}", f"{part.trained:,}") for part in plan.sizes.parts
    ]
    total = sum(part.total for part in plan.sizes.parts)
    trained = sum(part.trained for part in plan.sizes.parts)
    return output.table(("part", "parameters", "trained"), [*rows, ("all", f"{total:,}", f"{trained:,}")])


def _table(layouts: Iterable["Layout"]) -> str:
    layouts = list(layouts)
    names = [name for name in _SHOWN if any(layout.phase.device.get(name) for layout in layouts)]
    host = any(layout.host for layout in layouts)
    header = [
        "workers",
        "stage",
        "offload",
        *names,
        "in all",
        *(["host"] if host else []),
        "fits",
        "worst in",
    ]
    rows = [
        [
            layout.workers,
            layout.stage,
            layout.offload,
            *(size(layout.phase.device.get(name, 0)) for name in names),
            size(layout.phase.total),
            *([size(layout.host)] if host else []),
            "yes" if layout.fits else "NO",
            layout.phase.name,
        ]
        for layout in layouts
    ]
    return output.table(header, rows)


def _picture(layout: "Layout") -> Iterable[str]:
    yield f"the job as it stands: {_words(layout)}, in {layout.phase.name}:"
    amounts: Mapping[str, int] = layout.phase.device
    for name in _SHOWN:
        if amounts.get(name):
            bar = "█" * max(1, round(_BAR * amounts[name] / layout.phase.total))
            yield f"  {name:<17}{size(amounts[name]):>9}  {bar}"
    yield f"  {'in all':<17}{size(layout.phase.total):>9}  of {size(layout.room)}"


def _words(layout: "Layout") -> str:
    offload = "" if layout.offload == "none" else f", offload {layout.offload}"
    return (
        f"{layout.workers} worker{'s' * (layout.workers > 1)}, ZeRO stage {layout.stage}{offload}, "
        f"{layout.rows} rows at a time"
    )


def _verdict(plan: "Plan") -> str:
    if plan.smallest is None:
        return (
            "fits: no layout does, down to one row at a time; take more or larger devices, shorter inputs, a smaller "
            "encoder, or adapters in the place of train: full"
        )
    found = plan.smallest
    changes = [f"compute.workers={found.workers}", *(["compute.gpus_per_worker=1"] if plan.on_gpu else [])]
    changes += [f"train.deepspeed.stage={found.stage}"]
    changes += [f"train.deepspeed.offload.{part}=cpu" for part in found.offload.split("+") if part != "none"]
    changes += [f"train.accumulate={found.accumulate}"] if found.accumulate > 1 else []
    return (
        f"smallest that fits: {_words(found)}: {size(found.phase.total)} of {size(found.room)}\n  "
        + " ".join(f"--set {change}" for change in changes)
    )


def _duration(time: "Time") -> str:
    return (
        f"time: about {_clock(time.step)} a step, {_clock(time.total)} for {time.steps:,} steps and validation, at "
        f"{time.because}; without communication and waiting for data"
    )


def _clock(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def size(count: int) -> str:
    """Bytes for people, in units of a thousand."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:,.2f} GB"
