"""The plan of a job: what it holds under each layout, which is the smallest that fits, and how long it takes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from rayfuse.data.dataset import fit
from rayfuse.data.reading import read_job_rows
from rayfuse.errors import DataError, NotReachable, SpecError
from rayfuse.spec.job import FractionSplit, Job
from rayfuse.train.engine import full_config, read_options, stage_of
from rayfuse.train.plan import baseline, cards
from rayfuse.train.plan.layouts import Phase, Worker, offload_names
from rayfuse.train.plan.simulation import Optimizer, Simulation, Sizes, Step
from rayfuse.train.plan.typical import LENGTHS, longest, sample_bytes, with_lengths
from rayfuse.train.plan.typical import assumed as assume
from rayfuse.train.precision import choose_precision

_EVALUATION_BATCH = 256
_PREFETCHED = 3
"""Batches that wait while one is computed."""
_FITTED_ROWS = 10_000
_SHARE_OF_FORWARD = 1 / 3
"""Of the time of forward and backward."""

Zero = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked beside the job itself."""

    gpus: int | None = None
    """How many there are; None: the job's own workers, on GPUs or not as the job says."""
    gpu_memory: int | None = None
    card: cards.Card | None = None
    memory: int | None = None
    """Of the host, in bytes; None: this machine's."""
    rows: int | None = None
    """How many training rows there are; None: the job's rows are read."""
    lengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpus and not (self.gpu_memory or self.card):
            raise SpecError(
                "--gpus: how large are they? give --gpu-memory, such as 24GB, or --device, such as H100"
            )


@dataclass(frozen=True)
class Layout:
    """A way to run the job, and what one worker then holds."""

    workers: int
    stage: int
    offload: str
    accumulate: int
    rows: int
    """Of a micro-batch."""
    phase: Phase
    room: int
    """Bytes that a worker may take."""
    host: int
    """Bytes of host memory that a worker takes beside a GPU."""

    @property
    def fits(self) -> bool:
        return self.phase.total <= self.room


@dataclass(frozen=True)
class Activations:
    rows: int
    share: float
    """Of the lengths of the job's inputs."""
    kept: int
    peak: int
    """Bytes: at the end of the forward pass, and at most."""


@dataclass(frozen=True)
class Time:
    """Seconds, roughly: communication and waiting for data are not in it."""

    step: float
    steps: int
    """Of all epochs."""
    total: float
    flops: int
    """Of a step, over all workers."""
    rate: float
    """FLOP/s that a worker is taken to reach."""
    because: str


@dataclass(frozen=True)
class Plan:
    sizes: Sizes
    precision: str
    on_gpu: bool
    layouts: list[Layout]
    own: Layout
    smallest: Layout | None
    activations: list[Activations]
    time: Time | None
    told: list[str]
    """What was read and what was assumed."""


class _Model:
    """A simulated model, in which each batch size is simulated once."""

    def __init__(self, simulation: Simulation) -> None:
        self.sizes = simulation.sizes()
        self.step: Callable[[int], Step] = cache(simulation.step)
        self.evaluation: Callable[[int], int] = cache(simulation.evaluation)
        self.optimizer: Callable[[int | None], Optimizer] = cache(simulation.optimizer)


class Planner:
    """Answers about one job."""

    def __init__(self, job: Job, rows: int, question: Question, told: Sequence[str] = ()) -> None:
        """A fitted job whose inputs are as long as is planned for, and how many training rows it has."""
        self.job, self.rows, self.question = job, rows, question
        self.told = list(told)
        self.options = read_options(job)
        self.on_gpu = bool(question.gpus or job.compute.gpus_per_worker)
        self.precision = self._choose_precision()
        self._models: dict[bool, _Model] = {}
        self.sizes = self._model(0).sizes

    @classmethod
    def of(cls, job: Job, question: Question) -> "Planner":
        """Of a job as it is written: its rows are read, or made up where the question says how many there are."""
        return cls(*_known(job, question))

    def plan(self) -> Plan:
        """Everything. Raises SpecError, DataError or RayfuseError as its parts do."""
        with ThreadPoolExecutor(1) as beside:
            waiting = None if self.on_gpu else beside.submit(baseline.measure)
            own = self.memory(self.job.compute.most, self.options, self.job.train.accumulate)
            layouts = self._layouts()
            activations = self._activations()
            time = self._time()
            base = waiting.result() if waiting else 0
        return Plan(
            self.sizes,
            self.precision,
            self.on_gpu,
            [self._with_process(layout, base) for layout in layouts],
            self._with_process(own, base),
            self._smallest(base),
            activations,
            time,
            self.told,
        )

    def memory(self, workers: int, options: Mapping[str, Any], accumulate: int) -> Layout:
        """What a worker holds under some options of DeepSpeed, without its process."""
        zero = full_config(self.job, options, workers, self.precision, self.sizes.trained // 4)[
            "zero_optimization"
        ]
        stage = int(zero.get("stage", 0))
        rows = -(-self.job.train.batch_size // (workers * accumulate))
        model = self._model(stage)
        worker = Worker(
            model.sizes,
            model.step(rows),
            model.evaluation(self._rows_of_evaluation()),
            model.optimizer(workers if stage else None),
            zero,
            workers,
            accumulate,
            self.on_gpu,
            bool(self.job.train.ema),
        )
        phase = worker.worst()
        host = sum(phase.host.values()) + self._samples()
        return Layout(
            workers,
            stage_of(options),
            offload_names(zero),
            accumulate,
            rows,
            phase,
            self._room(workers),
            host,
        )

    def predicted(self, base: int) -> int:
        """Bytes at the peak of one worker of the job as it stands; `base` of them are its process's."""
        own = self.memory(self.job.compute.most, self.options, self.job.train.accumulate)
        return self._with_process(own, base).phase.total

    def _choose_precision(self) -> str:
        wanted = self.job.train.precision
        if not self.on_gpu:
            return choose_precision(wanted, torch.device("cpu"))[0]
        if wanted != "auto":
            return wanted
        has = self.question.card is None or self.question.card.bf16
        self.told.append(f"assumed: precision auto is {'bf16' if has else 'fp32'} on this GPU")
        return "bf16" if has else "fp32"

    def _model(self, stage: int) -> "_Model":
        """The model as a ZeRO stage has it: in float32 the same for all."""
        divided = stage == 3 and self.precision != "fp32"
        if divided not in self._models:
            self._models[divided] = _Model(Simulation(self.job, self.precision, divided))
        return self._models[divided]

    def _rows_of_evaluation(self) -> int:
        return min(_EVALUATION_BATCH, max(1, self._validation_rows() // self.job.compute.most))

    def _validation_rows(self) -> int:
        share = self.job.data.validation
        return round(self.rows * share.fraction) if isinstance(share, FractionSplit) else self.rows

    def _layouts(self) -> list[Layout]:
        """Every stage with what it may offload, on as many workers as there are GPUs or as the job has."""
        workers = self.question.gpus or self.job.compute.most
        return [self.memory(workers, options, self.job.train.accumulate) for options in self._choices()]

    def _choices(self) -> list[Mapping[str, Any]]:
        """Options of DeepSpeed, what costs least time first. A DeepSpeed file stays as it is but for these."""
        offloads: list[Zero] = [{}]
        if self.on_gpu:
            optimizer = {"offload_optimizer": {"device": "cpu"}}
            offloads += [optimizer, {**optimizer, "offload_param": {"device": "cpu"}}]
        own = self.options.get("zero_optimization", {})
        rest = {k: v for k, v in own.items() if k not in ("stage", "offload_optimizer", "offload_param")}
        return [
            {**self.options, "zero_optimization": {**rest, "stage": stage, **offload}}
            for offload in offloads
            for stage in range(4)
            if stage >= {0: 0, 1: 1, 2: 3}[len(offload)] and not any(self.job.stage_problems(stage))
        ]

    def _smallest(self, base: int) -> Layout | None:
        """The fewest workers, then the least accumulation, then the layout that costs least time."""
        most = self.question.gpus or self.job.compute.most
        counts = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
        for workers in counts:
            accumulate = self.job.train.accumulate
            while accumulate * workers <= self.job.train.batch_size:
                for options in self._choices():
                    layout = self._with_process(self.memory(workers, options, accumulate), base)
                    if layout.fits:
                        return layout
                accumulate *= 2
        return None

    def _room(self, workers: int) -> int:
        if self.on_gpu:
            size = self.question.gpu_memory or (self.question.card.memory if self.question.card else None)
            return _gpu_here() if size is None else size - cards.GPU_RESERVE
        return (self.question.memory or _host_memory()) // workers

    def _samples(self) -> int:
        """Samples that a worker keeps in host memory, and batches that wait."""
        one = sample_bytes(self.job)
        waiting = _PREFETCHED * one * self._rows_of_batch()
        return min(self.job.compute.keep_samples, one * (self.rows + self._validation_rows())) + waiting

    def _rows_of_batch(self) -> int:
        return -(-self.job.train.batch_size // (self.job.compute.most * self.job.train.accumulate))

    def _with_process(self, layout: Layout, base: int) -> Layout:
        """On a CPU, the process and the samples it keeps share the memory with the model."""
        if self.on_gpu:
            return layout
        device = {"process": base, "samples": layout.host, **layout.phase.device}
        return replace(layout, phase=Phase(layout.phase.name, device), host=0)

    def _activations(self) -> list[Activations]:
        """By batch and length: the job's own micro-batch, half and quarter of it; full and half lengths."""
        rows = self._rows_of_batch()
        found = []
        for share in (1.0, 0.5):
            model = self._model(stage_of(self.options)) if share == 1 else self._shorter(share)
            if model is None:
                continue
            for count in dict.fromkeys((rows, max(1, rows // 2), max(1, rows // 4))):
                step = model.step(count)
                found.append(Activations(count, share, step.kept, step.most_activations.activations))
        return found

    def _shorter(self, share: float) -> "_Model | None":
        lengths = {
            name: _part(getattr(options, LENGTHS[options.type]), share)
            for name, options in self.job.inputs.items()
            if options.type in LENGTHS
        }
        if not lengths:
            return None
        return _Model(
            Simulation(with_lengths(self.job, lengths), self.precision, stage_of(self.options) == 3)
        )

    def _time(self) -> Time | None:
        workers = self.question.gpus or self.job.compute.most
        rate, because = self._rate()
        if rate is None:
            return None
        train = self.job.train
        rows = -(-train.batch_size // (workers * train.accumulate))
        batch = self._model(stage_of(self.options)).step(rows)
        each = max(batch.flops / rate, batch.calls * cards.CALL_SECONDS if self.on_gpu else 0.0)
        step, steps = train.accumulate * each, -(-self.rows // train.batch_size) * train.epochs
        validation = _SHARE_OF_FORWARD * each / rows * self._validation_rows() / workers * train.epochs
        flops = round(batch.flops / rows * train.batch_size)
        return Time(step, steps, step * steps + validation, flops, rate, because)

    def _rate(self) -> tuple[float | None, str]:
        if not self.on_gpu:
            threads = max(1, int(self.job.compute.cpus_per_worker))
            measured = cards.this_cpu(threads)
            share = cards.SHARE_OF_PRODUCT
            return measured * share, (
                f"{share:.0%} of the {measured / 1e9:.0f} GFLOP/s of a matrix product on {threads} "
                f"thread{'s' * (threads > 1)} here, just measured"
            )
        card = self.question.card
        if card is None:
            return None, ""
        peak = card.single if self.precision == "fp32" else card.half
        share = cards.SHARE_OF_PEAK
        return peak * share, f"{share:.0%} of {card.name}'s {peak / 1e12:g} TFLOP/s in {self.precision}"


def _part(length: float, share: float) -> float:
    """A share of a length in seconds, or of one that is counted, of which one stays."""
    return length * share if isinstance(length, float) else max(1, length * share)


def _known(job: Job, question: Question) -> tuple[Job, int, Question, list[str]]:
    """The fitted job with the lengths of its rows, how many training rows there are, and what was read."""
    if question.rows is not None:
        job, made_up = assume(job)
        told = [
            f"not read: the rows; taken to be {question.rows}, and as long as the job allows",
            *(f"assumed: {what}" for what in made_up),
        ]
        return with_lengths(job, question.lengths), question.rows, question, told
    try:
        rows, _ = read_job_rows(job.data.train, job)
    except (DataError, NotReachable) as error:
        raise type(error)(f"{error}\n  to plan without the rows, say how many there are: --rows N") from None
    split = job.data.validation
    count = len(rows) - round(len(rows) * split.fraction) if isinstance(split, FractionSplit) else len(rows)
    told = [f"read: {len(rows)} rows, {count} of them for training"]
    if len(rows) > _FITTED_ROWS:
        told.append(f"read: classes and vocabularies of the first {_FITTED_ROWS} rows alone")
    job = fit(job, rows[:_FITTED_ROWS])
    found = {name: length for name, length in longest(job, rows).items() if name not in question.lengths}
    told += [
        f"read: {name} is at most {length} long in the first rows; --length {name}=N plans for others"
        for name, length in found.items()
    ]
    return with_lengths(job, {**found, **question.lengths}), max(1, count), question, told


def _host_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _gpu_here() -> int:
    import torch

    if not torch.cuda.is_available():
        raise SpecError(
            "compute.gpus_per_worker: no GPU is here to look at; give --gpu-memory, such as 24GB, or --device, "
            "such as H100"
        )
    return int(torch.cuda.get_device_properties(0).total_memory) - cards.GPU_RESERVE
