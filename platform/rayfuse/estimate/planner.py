"""Resource plan of a job: memory under each layout, the smallest layout that fits, and training time."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows, split_urls
from rayfuse.errors import DataError, SpecError, UnavailableError
from rayfuse.estimate import baseline, gpu_specs
from rayfuse.estimate.large_batches import ScalableSimulation
from rayfuse.estimate.layouts import Phase, WorkerFootprint, offload_names
from rayfuse.estimate.report import format_plan, plan_to_dict
from rayfuse.estimate.simulation import ModelSizes, OptimizerMemory, Simulation, StepEstimate
from rayfuse.estimate.synthetic_batch import max_input_lengths, max_lengths, sample_bytes, with_lengths
from rayfuse.estimate.synthetic_batch import with_assumed_statistics as assume
from rayfuse.spec.job import Job
from rayfuse.training.deepspeed_config import build_deepspeed_config, load_deepspeed_config, zero_stage
from rayfuse.training.evaluator import evaluation_batch_size
from rayfuse.training.memory import job_libraries
from rayfuse.training.precision import choose_precision

_PREFETCHED_BATCHES = 3
"""Batches that are ready while one is computed."""
_KERNEL_BYTES = 64_000_000
"""Compiled kernels of a worker on CPUs, and pages of libraries that they use."""
_RETAINED_FRACTION = 0.5
"""Freed memory that malloc retains, as a fraction of the activations."""
_MAX_FITTED_ROWS = 10_000
_FORWARD_FRACTION = 1 / 3
"""Fraction of the forward pass in the time of forward and backward."""

ZeroConfig = dict[str, Any]
"""DeepSpeed's `zero_optimization`."""


@dataclass(frozen=True)
class PlanRequest:
    """Resources and data to plan for."""

    gpus: int | None = None
    """Number of GPUs; None: the workers of the job, with or without GPUs as in `compute`."""
    gpu_memory: int | None = None
    """Bytes of memory of each GPU."""
    gpu_spec: gpu_specs.GpuSpec | None = None
    """Known GPU, for its memory and speed."""
    memory: int | None = None
    """Bytes of host memory; None: that of this machine."""
    rows: int | None = None
    """Number of training rows; None: the rows of the job are read."""
    lengths: Mapping[str, float] = field(default_factory=dict)
    """Length by input: tokens, seconds, frames, steps or items."""

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise SpecError(
                f"gpus: {self.gpus} is not a number of GPUs; pass 1 or more, or leave it out for CPUs"
            )
        if self.gpus and not (self.gpu_memory or self.gpu_spec):
            raise SpecError(
                f"gpus {self.gpus}: the memory of each is missing; also pass --gpu-memory, such as 24GB, or "
                "--device, such as H100"
            )


@dataclass(frozen=True)
class Layout:
    """Number of workers with their ZeRO stage and offload, and the memory of one of them."""

    workers: int
    """Number of workers."""
    stage: int
    """ZeRO stage."""
    offload: str
    """Offloaded state: `none`, `optimizer` or `optimizer+parameters`."""
    gradient_accumulation_steps: int
    """Micro-batches of an optimizer step."""
    micro_batch_size: int
    """Rows of a micro-batch."""
    phase: Phase
    """Phase with the most bytes on the device."""
    memory_limit: int
    """Bytes that are available to a worker on its device."""
    host_bytes: int
    """Bytes of host memory of a worker next to its GPU."""

    @property
    def fits(self) -> bool:
        """True if the peak is within the limit."""
        return self.phase.total <= self.memory_limit


@dataclass(frozen=True)
class Activations:
    """Memory of activations by batch size and length."""

    micro_batch_size: int
    """Rows of a micro-batch."""
    length_fraction: float
    """Length of the inputs, as a fraction of those of the job."""
    saved: int
    """Bytes at the end of the forward pass."""
    peak: int
    """Peak bytes."""


@dataclass(frozen=True)
class TimeEstimate:
    """Approximate training time, without communication and waiting for data."""

    step: float
    """Seconds of an optimizer step."""
    steps: int
    """Optimizer steps of all epochs."""
    total: float
    """Seconds of all steps and validation."""
    flops: int
    """FLOPs of a step, over all workers."""
    flops_per_second: float
    """Assumed FLOP/s of a worker."""
    basis: str
    """Basis of that assumption."""


@dataclass(frozen=True)
class Plan:
    """Resource plan of a job."""

    sizes: ModelSizes
    """Sizes of the model."""
    precision: str
    """Precision of training: `fp32`, `bf16` or `fp16`."""
    on_gpu: bool
    """True if workers have GPUs."""
    layouts: list[Layout]
    """Every ZeRO stage and offload on all workers."""
    current: Layout
    """Layout of the job as it is configured."""
    smallest: Layout | None
    """Smallest layout that fits; None if none does."""
    activations: list[Activations]
    """Memory of activations by batch size and length."""
    time: TimeEstimate | None
    """Training time; None if the speed of the GPU is not known."""
    notes: list[str]
    """Notes on data that was read and values that were assumed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON, with bytes and seconds."""
        return plan_to_dict(self)

    def __str__(self) -> str:
        return "\n".join(format_plan(self))


class _CachedSimulation:
    """Simulated model that caches its results by batch size."""

    def __init__(self, simulation: Simulation) -> None:
        self.sizes = simulation.sizes()
        scalable = ScalableSimulation(simulation)
        self.step: Callable[[int], StepEstimate] = cache(scalable.simulate_step)
        self.evaluation: Callable[[int], int] = cache(scalable.simulate_evaluation)
        self.optimizer: Callable[[int | None], OptimizerMemory] = cache(simulation.simulate_optimizer)


class Planner:
    """Planner of one job."""

    def __init__(self, job: Job, rows: int, request: PlanRequest, notes: Sequence[str] = ()) -> None:
        """Plan for a fitted job with inputs of the length to plan for, and its number of training rows."""
        self.job, self.rows, self.request = job, rows, request
        self.notes = list(notes)
        self.options = load_deepspeed_config(job)
        self.on_gpu = bool(request.gpus or job.compute.gpus_per_worker)
        self.precision = self._choose_precision()
        self._models: dict[bool, _CachedSimulation] = {}
        self.sizes = self._model(0).sizes

    @classmethod
    def from_job(cls, job: Job, request: PlanRequest) -> "Planner":
        """Create the planner of a job that is not fitted: its rows are read, or assumed if the request has their number."""
        return cls(*_resolve_request(job, request))

    def plan(self) -> Plan:
        """Return the complete plan. Raises RayfuseError if the model cannot be simulated."""
        with ThreadPoolExecutor(1) as executor:
            pending = None if self.on_gpu else executor.submit(baseline.measure, job_libraries(self.job))
            layouts = self._layouts()
            activations = self._activations()
            time = self._time()
            base = pending.result() if pending else 0
        return Plan(
            self.sizes,
            self.precision,
            self.on_gpu,
            [self._add_process_memory(layout, base) for layout in layouts],
            self.current_layout(base),
            self.smallest_fitting(base),
            activations,
            time,
            self.notes,
        )

    def estimate_memory(
        self, workers: int, options: Mapping[str, Any], gradient_accumulation_steps: int
    ) -> Layout:
        """Return the memory of a worker under these options of DeepSpeed, without that of its process."""
        zero = build_deepspeed_config(self.job, options, workers, self.precision, self.sizes.trainable // 4)[
            "zero_optimization"
        ]
        stage = int(zero.get("stage", 0))
        rows = -(-self.job.train.batch_size // (workers * gradient_accumulation_steps))
        model = self._model(stage)
        worker = WorkerFootprint(
            model.sizes,
            model.step(rows),
            model.evaluation(self._evaluation_batch_size()),
            model.optimizer(workers if stage else None),
            zero,
            workers,
            gradient_accumulation_steps,
            self.on_gpu,
            bool(self.job.train.ema),
        )
        phase = worker.peak_phase()
        host = sum(phase.host.values()) + self._sample_memory()
        return Layout(
            workers,
            zero_stage(options),
            offload_names(zero),
            gradient_accumulation_steps,
            rows,
            phase,
            self._memory_limit(workers),
            host,
        )

    def current_layout(self, baseline_bytes: int) -> Layout:
        """Return the layout of the job as it is configured, with `baseline_bytes` of a worker's process."""
        current = self.estimate_memory(
            self.job.compute.max_workers, self.options, self.job.train.gradient_accumulation_steps
        )
        return self._add_process_memory(current, baseline_bytes)

    def predict_peak_bytes(self, baseline_bytes: int) -> int:
        """Return the peak bytes of a worker of the job as it is configured, with `baseline_bytes` of its process."""
        return self.current_layout(baseline_bytes).phase.total

    def _choose_precision(self) -> str:
        wanted = self.job.train.precision
        if not self.on_gpu:
            return choose_precision(wanted, torch.device("cpu"))[0]
        if wanted != "auto":
            return wanted
        has = self.request.gpu_spec is None or self.request.gpu_spec.supports_bf16
        self.notes.append(f"assumed: precision auto is {'bf16' if has else 'fp32'} on this GPU")
        return "bf16" if has else "fp32"

    def _model(self, stage: int) -> "_CachedSimulation":
        """Return the model of a ZeRO stage: stage 3 has float32 weights whatever the precision."""
        sharded = stage == 3 and self.precision != "fp32"
        if sharded not in self._models:
            self._models[sharded] = _CachedSimulation(Simulation(self.job, self.precision, sharded))
        return self._models[sharded]

    def _evaluation_batch_size(self) -> int:
        workers = self.job.compute.max_workers
        return min(evaluation_batch_size(self.job, workers), max(1, self.rows // workers))

    def _validation_rows(self) -> int:
        return round(self.rows * self.job.data.fractions.get("validation", 1.0))

    def _layouts(self) -> list[Layout]:
        """Return every stage and offload, on as many workers as there are GPUs or as the job has."""
        workers = self.request.gpus or self.job.compute.max_workers
        return [
            self.estimate_memory(workers, options, self.job.train.gradient_accumulation_steps)
            for options in self._candidate_configs()
        ]

    def _candidate_configs(self) -> list[Mapping[str, Any]]:
        """Return options of DeepSpeed, the fastest first. Other options of a DeepSpeed file stay as they are."""
        offloads: list[ZeroConfig] = [{}]
        if self.on_gpu:
            optimizer = {"offload_optimizer": {"device": "cpu"}}
            offloads += [optimizer, {**optimizer, "offload_param": {"device": "cpu"}}]
        configured = self.options.get("zero_optimization", {})
        rest = {
            k: v for k, v in configured.items() if k not in ("stage", "offload_optimizer", "offload_param")
        }
        return [
            {**self.options, "zero_optimization": {**rest, "stage": stage, **offload}}
            for offload in offloads
            for stage in range(4)
            if stage >= {0: 0, 1: 1, 2: 3}[len(offload)] and not any(self.job.validate_zero_stage(stage))
        ]

    def smallest_fitting(self, baseline_bytes: int) -> Layout | None:
        """Return the layout that fits with the minimum of workers, then of accumulation steps, then of time."""
        available = self.request.gpus or self.job.compute.max_workers
        counts = sorted({available, *(1 << power for power in range(available.bit_length()))})
        for workers in counts:
            accumulation_steps = self.job.train.gradient_accumulation_steps
            while accumulation_steps * workers <= self.job.train.batch_size:
                for options in self._candidate_configs():
                    layout = self._add_process_memory(
                        self.estimate_memory(workers, options, accumulation_steps), baseline_bytes
                    )
                    if layout.fits:
                        return layout
                accumulation_steps *= 2
        return None

    def _memory_limit(self, workers: int) -> int:
        if self.on_gpu:
            size = self.request.gpu_memory or (
                self.request.gpu_spec.memory_bytes if self.request.gpu_spec else None
            )
            return _local_gpu_memory() if size is None else size - gpu_specs.GPU_RESERVED_BYTES
        return (self.request.memory or _host_memory()) // workers

    def _sample_memory(self) -> int:
        """Return the bytes of cached samples and prefetched batches of a worker in host memory."""
        one = sample_bytes(self.job)
        prefetched = _PREFETCHED_BATCHES * one * max(self._micro_batch_size(), self._evaluation_batch_size())
        return min(self.job.compute.sample_cache, one * (self.rows + self._validation_rows())) + prefetched

    def _micro_batch_size(self) -> int:
        return -(
            -self.job.train.batch_size
            // (self.job.compute.max_workers * self.job.train.gradient_accumulation_steps)
        )

    def _add_process_memory(self, layout: Layout, baseline_bytes: int) -> Layout:
        """Add the memory of the process and its samples, which share host memory with the model on a CPU."""
        if self.on_gpu:
            return layout
        retained = round(_RETAINED_FRACTION * layout.phase.device.get("activations", 0))
        own = {
            "process": baseline_bytes,
            "samples": layout.host_bytes,
            "overhead": _KERNEL_BYTES + retained,
        }
        device = {**own, **layout.phase.device}
        return replace(layout, phase=Phase(layout.phase.name, device), host_bytes=0)

    def _activations(self) -> list[Activations]:
        """Return activations for the job's micro-batch, half and a quarter of it, at full and half length."""
        rows = self._micro_batch_size()
        found = []
        for fraction in (1.0, 0.5):
            model = (
                self._model(zero_stage(self.options)) if fraction == 1 else self._shortened_model(fraction)
            )
            if model is None:
                continue
            for count in dict.fromkeys((rows, max(1, rows // 2), max(1, rows // 4))):
                step = model.step(count)
                found.append(
                    Activations(count, fraction, step.saved_activations, step.peak_activations.activations)
                )
        return found

    def _shortened_model(self, fraction: float) -> "_CachedSimulation | None":
        lengths = {name: _scale_length(maximum, fraction) for name, maximum in max_lengths(self.job).items()}
        if not lengths:
            return None
        return _CachedSimulation(
            Simulation(with_lengths(self.job, lengths), self.precision, zero_stage(self.options) == 3)
        )

    def _time(self) -> TimeEstimate | None:
        workers = self.request.gpus or self.job.compute.max_workers
        rate, basis = self._achievable_flops()
        if rate is None:
            return None
        train = self.job.train
        rows = -(-train.batch_size // (workers * train.gradient_accumulation_steps))
        batch = self._model(zero_stage(self.options)).step(rows)
        each = max(
            batch.flops / rate, batch.num_operations * gpu_specs.KERNEL_LAUNCH_SECONDS if self.on_gpu else 0.0
        )
        step, steps = (
            train.gradient_accumulation_steps * each,
            -(-self.rows // train.batch_size) * train.epochs,
        )
        validation = _FORWARD_FRACTION * each / rows * self._validation_rows() / workers * train.epochs
        flops = round(batch.flops / rows * train.batch_size)
        return TimeEstimate(step, steps, step * steps + validation, flops, rate, basis)

    def _achievable_flops(self) -> tuple[float | None, str]:
        if not self.on_gpu:
            threads = max(1, int(self.job.compute.cpus_per_worker))
            measured = gpu_specs.measure_cpu_flops(threads)
            fraction = gpu_specs.CPU_MATMUL_EFFICIENCY
            return measured * fraction, (
                f"{fraction:.0%} of the {measured / 1e9:.0f} GFLOP/s of a matrix product on {threads} "
                f"thread{'s' * (threads > 1)} of this machine"
            )
        gpu_spec = self.request.gpu_spec
        if gpu_spec is None:
            return None, ""
        peak = gpu_spec.peak_flops_fp32 if self.precision == "fp32" else gpu_spec.peak_flops_16bit
        fraction = gpu_specs.ASSUMED_MFU
        return (
            peak * fraction,
            f"{fraction:.0%} of {gpu_spec.name}'s {peak / 1e12:g} TFLOP/s in {self.precision}",
        )


def _describe_folds(job: Job) -> list[str]:
    """Return a note about the models of the folds, which are trained before the one that is planned."""
    data = job.data
    if not data.folds or data.fold:
        return []
    fraction = (1 - sum(data.of_fold(1).fractions.values())) / (1 - sum(data.fractions.values()))
    return [
        f"cross-validation: {data.folds} models of {fraction:.0%} of the training rows are trained before; all of it takes "
        f"{1 + data.folds * fraction:.1f} times as long"
    ]


def _scale_length(length: float, fraction: float) -> float:
    """Return a fraction of a length in seconds, or of a count, at least 1."""
    return length * fraction if isinstance(length, float) else max(1, length * fraction)


def _resolve_request(job: Job, request: PlanRequest) -> tuple[Job, int, PlanRequest, list[str]]:
    """Return the fitted job with the lengths to plan for, its number of training rows, the request, and notes."""
    if request.rows is not None:
        job, assumptions = assume(job)
        notes = [
            f"assumed: {request.rows} rows, as long as the job allows; the data is not read",
            *(f"assumed: {what}" for what in assumptions),
            *_describe_folds(job),
        ]
        return with_lengths(job, request.lengths), request.rows, request, notes
    try:
        rows, _ = read_job_rows(split_urls(job)["train"], job)
    except (DataError, UnavailableError) as error:
        raise type(error)(
            f"{error}\n  to plan without reading the rows, pass their number: --rows N"
        ) from None
    count = len(rows) - sum(round(len(rows) * fraction) for fraction in job.data.fractions.values())
    notes = [f"read: {len(rows)} rows, {count} of them for training", *_describe_folds(job)]
    if len(rows) > _MAX_FITTED_ROWS:
        notes.append(f"read: classes and vocabularies of the first {_MAX_FITTED_ROWS} rows only")
    job = fit(job, rows[:_MAX_FITTED_ROWS])
    found = {
        name: length for name, length in max_input_lengths(job, rows).items() if name not in request.lengths
    }
    notes += [
        f"read: {name} is at most {length} long in the first rows; use --length {name}=N to plan for another length"
        for name, length in found.items()
    ]
    return with_lengths(job, {**found, **request.lengths}), max(1, count), request, notes


def _host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _local_gpu_memory() -> int:
    import torch

    if not torch.cuda.is_available():
        raise SpecError(
            "compute.gpus_per_worker: this machine has no GPU; pass --gpu-memory, such as 24GB, or --device, "
            "such as H100"
        )
    return int(torch.cuda.get_device_properties(0).total_memory) - gpu_specs.GPU_RESERVED_BYTES
