"""Throughput of Rayfuse's training loop compared with a bare PyTorch loop and with transformers' Trainer.

Rows, batch size, model, precision and process are the same: the sides alternate inside one Ray Train worker, so that
other load on the machine affects all of them. The first side of a round is the last in the next. On a busy machine, use
the ratio of CPU time, which excludes the time of other processes.

SHARED is the folder that contains data/tabular_text, ROUNDS the number of turns of each side.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("SHARED", ROOT.parent / "shared"))
ROUNDS = int(os.environ.get("ROUNDS", "24"))
BARE_LIMIT, TRAINER_LIMIT = 0.97, 1.0
LORA = {"r": 8, "lora_alpha": 16}
Sides = dict[str, Callable[[int], None]]
"""Contestants by name: each trains on all rows of the epoch that it is called with."""
Turns = dict[str, list[tuple[float, float]]]
"""Wall time and CPU time of each turn of each side, in seconds."""


def run() -> None:
    """Print the rows per second of all sides, their ratios, and the start-up time."""
    from rayfuse.demo.run import prepare

    prepare(ROOT)
    _beside_bare()
    _beside_trainer()


def _beside_bare() -> None:
    job, rows = _digits()
    started = time.perf_counter()
    found = in_worker(_measure_bare, job, rows)
    wall = time.perf_counter() - started
    print(
        f"throughput  start-up: {wall - found['seconds']:.1f} s for Ray, worker and models; {found['precision']}"
    )
    limits = {f"stage {stage}": BARE_LIMIT for stage in (0, 1, 2)}
    _print(found["turns"], len(rows), "bare", limits)


def _beside_trainer() -> None:
    if not (SHARED / "data").is_dir():
        print(f"throughput  no {SHARED}/data here, so not compared with Trainer; set SHARED")
        return
    job, rows = _reviews()
    found = in_worker(_measure_trainer, job, rows)
    _print(found["turns"], len(rows), "Trainer", {"rayfuse": TRAINER_LIMIT})


def _print(turns: Turns, rows: int, other: str, limits: dict[str, float]) -> None:
    for name, taken in turns.items():
        rate = statistics.median(rows / clock for clock, _ in taken)
        line = f"throughput  {name:<8} {rate:7.1f} rows/s   median of {len(taken)} turns"
        if name != other:
            clock, processor = (
                statistics.median(b[kind] / a[kind] for a, b in zip(taken, turns[other], strict=True))
                for kind in (0, 1)
            )
            limit = f"at least {limits[name]}" if name in limits else "printed"
            line += f"   {clock:.3f} of {other}'s ({processor:.3f} by processor seconds), {limit}"
        print(line)


def _digits() -> tuple[Any, list[Any]]:
    """Return the demo's job: images, clips and questions."""
    return _load(ROOT / "jobs" / "digit_arithmetic.yaml", 256)


def _reviews() -> tuple[Any, list[Any]]:
    """Return a text job on reviews, with LoRA in all linear layers of MiniLM."""
    encoder = {"type": "huggingface", "model": str(ROOT / "models/minilm"), "train": "lora", "lora": LORA}
    content = {
        "kind": "job",
        "name": "reviews",
        "data": {
            "train": str(SHARED / "data/tabular_text/womens_clothing_reviews_1000.csv"),
            "max_bad_rows": 0.1,
        },
        "inputs": {"text": {"type": "text", "column": "Review Text", "max_tokens": 64, "encoder": encoder}},
        "fusion": {"type": "concat", "layers": 1},
        "tasks": {"recommended": {"type": "classification", "column": "Recommended IND"}},
        "train": {"batch_size": 16},
        "output": {"storage": "unused"},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reviews.yaml")
        path.write_text(json.dumps(content))
        return _load(path, 128)


def _load(spec: Path, most: int) -> tuple[Any, list[Any]]:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec

    cpus = os.cpu_count()
    job = load_spec(spec, Job, {"compute.workers": 1, "compute.cpus_per_worker": cpus})
    job, dataset = load_dataset(job)
    return job, dataset.splits["train"][:most]


def in_worker(measure: Callable[[dict[str, Any]], dict[str, Any]], job: Any, rows: Any) -> Any:
    """Run `measure` in one Ray Train worker with the job as JSON and the rows, and return its result."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from rayfuse.training.ray_session import connect

    connect(job)
    with tempfile.TemporaryDirectory() as storage:
        trainer = TorchTrainer(
            measure,
            train_loop_config={"job": job.model_dump_json(), "rows": rows},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": job.compute.cpus_per_worker}
            ),
            run_config=RunConfig(name="bench", storage_path=storage),
        )
        found = trainer.fit().return_value
    ray.shutdown()
    return found


def job_and_rows(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the job and the rows that `in_worker` was called with."""
    import torch

    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    job = validate_spec(json.loads(config["job"]), Job, "job")
    torch.set_num_threads(int(job.compute.cpus_per_worker))
    return job, config["rows"]


def worker(job: Any, rows: list[Any], stage: int) -> Any:
    """Build the trainer of Rayfuse for a job under a ZeRO stage."""
    from rayfuse.spec.deepspeed import DeepSpeedConfig
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    train = job.train.model_copy(update={"deepspeed": DeepSpeedConfig(stage=stage)})
    job = job.model_copy(update={"train": train})
    return build_trainer(job, {"train": rows}, load_deepspeed_config(job))


class _Clock:
    """Return wall time and CPU time in seconds since its creation."""

    def __init__(self) -> None:
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.clock, time.process_time() - self.processor


def timed(work: Any, rows: int) -> float:
    """Return rows per second."""
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def _take_turns(sides: Sides) -> Turns:
    """Drop the first round, which decodes the rows and warms up."""
    turns: Turns = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            clock = _Clock()
            sides[name](turn)
            if turn:
                turns[name].append(clock.read())
    return turns


def _measure_bare(config: dict[str, Any]) -> dict[str, Any]:
    import torch

    from rayfuse.model.fused import FusedModel
    from rayfuse.training.param_groups import build_param_groups

    job, rows = job_and_rows(config)
    workers = {stage: worker(job, rows, stage) for stage in (0, 1, 2, 3)}
    model = FusedModel(job)
    optimizer = torch.optim.AdamW(build_param_groups(job, model), betas=job.train.optimizer.betas)
    started = time.perf_counter()
    sides: Sides = {f"stage {stage}": worker.train_epoch for stage, worker in workers.items()}
    sides["bare"] = lambda epoch: _bare_epoch(workers[0], model, optimizer, epoch)
    turns = _take_turns(sides)
    return {"turns": turns, "seconds": time.perf_counter() - started, "precision": workers[0].precision}


def _bare_epoch(worker: Any, model: Any, optimizer: Any, epoch: int) -> None:
    """Train in bare PyTorch on the same batches."""
    import torch

    from rayfuse.training.precision import DTYPES

    model.train()
    dtype = DTYPES[worker.precision]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for batches, size in worker.loader.iter_epoch(epoch):
        for batch in batches:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = model.total_loss(model.losses(model(batch), batch), batch) / size.rows
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _measure_trainer(config: dict[str, Any]) -> dict[str, Any]:
    job, rows = job_and_rows(config)
    mine = worker(job, rows, stage=2)
    turns = take_turns_with_trainer(
        lambda folder, callback: _trainer(job, rows, mine.precision, folder, callback), mine, ROUNDS
    )
    return {"turns": turns}


def take_turns_with_trainer(build: Callable[[str, Any], Any], mine: Any, rounds: int) -> Turns:
    """Run transformers' Trainer once, and let it wait at the end of each epoch for an epoch of Rayfuse.

    build: returns a Trainer of `rounds` + 1 epochs that writes to a folder, with a callback.
    """
    from transformers import TrainerCallback

    turns: Turns = {"rayfuse": [], "Trainer": []}

    class TakeTurns(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.clock = _Clock()

        def on_epoch_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            theirs, turn = self.clock.read(), round(state.epoch) - 1
            clock = _Clock()
            mine.train_epoch(turn)
            if turn:
                turns["Trainer"].append(theirs)
                turns["rayfuse"].append(clock.read())

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # else Trainer would wrap its model for several workers
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        build(folder, TakeTurns()).train()
    assert len(turns["rayfuse"]) == rounds
    return turns


def _trainer(job: Any, rows: list[Any], precision: str, folder: str, turns: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    text, train = job.inputs["text"], job.train
    tokenizer = AutoTokenizer.from_pretrained(text.encoder.model)
    items = [
        {
            **tokenizer(row.values[text.column], truncation=True, max_length=text.max_tokens),
            "label": int(row.values["Recommended IND"]),
        }
        for row in rows
    ]
    whole = AutoModelForSequenceClassification.from_pretrained(text.encoder.model, num_labels=2)
    lora = LoraConfig(
        r=LORA["r"], lora_alpha=LORA["lora_alpha"], target_modules="all-linear", task_type="SEQ_CLS"
    )
    options = TrainingArguments(
        folder,
        num_train_epochs=ROUNDS + 1,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.optimizer.lr,
        weight_decay=train.optimizer.weight_decay,
        use_cpu=True,
        bf16=precision == "bf16",
        save_strategy="no",
        disable_tqdm=True,
    )
    model = get_peft_model(whole, lora)
    return Trainer(model, options, train_dataset=items, processing_class=tokenizer, callbacks=[turns])
