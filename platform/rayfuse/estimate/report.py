"""Report of a plan, as text and as JSON."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rayfuse.formatting import format_bytes, table

if TYPE_CHECKING:
    from rayfuse.estimate.planner import Layout, Plan, TimeEstimate

_BAR_WIDTH = 40
_MEMORY_PARTS = ("process", "overhead", "samples", "weights", "gathered weights", "master weights", "ema weights", "optimizer",
          "gradients", "buffers", "activations")  # fmt: skip


def plan_to_dict(plan: "Plan") -> dict[str, Any]:
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


def format_plan(plan: "Plan") -> Iterable[str]:
    """Yield the lines of the report."""
    yield from plan.notes
    yield ""
    yield _parameters(plan)
    yield ""
    where = "GPU" if plan.on_gpu else "worker"
    yield f"peak memory of each {where} by ZeRO stage ({plan.precision}):"
    yield _layout_table(plan.layouts)
    yield ""
    yield from _memory_bars(plan.current)
    yield ""
    yield "activations of a micro-batch, saved for the backward pass and at the peak:"
    yield table(
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
    yield recommend(plan.smallest, plan.on_gpu)
    yield _time_estimate(plan.time) if plan.time else "time: unknown without --device"


def _parameters(plan: "Plan") -> str:
    rows: list[tuple[object, ...]] = [
        (part.name, f"{part.num_parameters:,}", f"{part.num_trainable:,}") for part in plan.sizes.modules
    ]
    total = sum(part.num_parameters for part in plan.sizes.modules)
    trained = sum(part.num_trainable for part in plan.sizes.modules)
    return table(("part", "parameters", "trained"), [*rows, ("all", f"{total:,}", f"{trained:,}")])


def _layout_table(layouts: Iterable["Layout"]) -> str:
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
    return table(header, rows)


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


def recommend(smallest: "Layout | None", on_gpu: bool) -> str:
    """Return the options of the smallest layout that fits, or what to do where none does."""
    if smallest is None:
        return (
            "no layout fits, down to micro-batches of one row; use more or larger devices, shorter inputs, a smaller encoder, "
            "or adapters instead of train: full"
        )
    steps = smallest.gradient_accumulation_steps
    changes = [f"compute.workers={smallest.workers}", *(["compute.gpus_per_worker=1"] if on_gpu else [])]
    changes += [f"train.deepspeed.stage={smallest.stage}"]
    changes += [
        f"train.deepspeed.offload.{part}=cpu" for part in smallest.offload.split("+") if part != "none"
    ]
    changes += [f"train.gradient_accumulation_steps={steps}"] if steps > 1 else []
    used = f"{format_bytes(smallest.phase.total)} of {format_bytes(smallest.memory_limit)}"
    return f"smallest layout that fits: {_describe_layout(smallest)}: {used}\n  " + " ".join(
        f"--set {change}" for change in changes
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
