"""Rows per second with and without the feature cache, and of plain PyTorch, from the second epoch on.

The recipe jobs/arithmetic.yaml with MiniLM frozen, small trained convolutional encoders, batches of 256, and no random
changes of rows. All alternate in one Ray Train worker. Equal texts of a batch are encoded once even without the cache,
and `arith` has 12 questions; so it is measured unchanged, and with the row's index in front of each question, so that
all questions differ.
"""

import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from throughput import SHARED, in_worker, timed

ROOT = Path(__file__).parents[1]
ROUNDS = 10
ROWS = 512
FASTER = 20.0
SLOWER = 1.3
RECIPE = [
    f"data.train={SHARED}/data/avmnist_smil/arith_train.jsonl",
    "data.test=null",
    "inputs.image.augment=[]",
    "inputs.image.encoder={type: conv, hidden_size: 4}",
    "inputs.audio.augment=[]",
    "inputs.audio.encoder={type: conv, hidden_size: 4}",
    "inputs.audio.n_mels=20",
    f"inputs.text.encoder={{type: huggingface, model: {ROOT}/models/minilm, train: frozen}}",
    "align.dim=32",
    "train.batch_size=256",
    "fusion={type: concat}",
    "train.subset_loss=null",
    "train.ema=null",
]


def run() -> None:
    """Print rows per second of all, and the ratios of paired epochs."""
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec, parse_overrides
    from rayfuse.training.ray_session import connect

    if not (SHARED / "data").is_dir():
        print(f"cache       skipped: requires {SHARED}/data/avmnist_smil; set SHARED")
        return
    with tempfile.TemporaryDirectory() as storage:
        own = [f"output.storage={storage}", f"compute.cpus_per_worker={os.cpu_count()}"]
        job, dataset = load_dataset(
            load_spec(ROOT / "jobs" / "arithmetic.yaml", Job, parse_overrides([*RECIPE, *own]))
        )
        rows = dataset.splits["train"][:ROWS]
        distinct_questions = [
            replace(row, values={**row.values, "text": f"{number}: {row.values['text']}"})
            for number, row in enumerate(rows)
        ]
        connect(job)
        found = in_worker(_measure, job, {"unchanged": rows, "distinct questions": distinct_questions})
    for name, rates in found.items():
        for kind, values in rates.items():
            print(f"cache       arith, {name:<16} {kind:<10} {statistics.median(values):8.1f} rows/s")
        faster, slower = _ratio(rates["cached"], rates["uncached"]), _ratio(rates["bare"], rates["cached"])
        print(f"cache       arith, {name:<16} cached / uncached  {faster:6.2f}   at least {FASTER:.0f}")
        print(f"cache       arith, {name:<16} bare / cached      {slower:6.2f}   at most {SLOWER}")


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _measure(config: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    import torch

    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    job = validate_spec(json.loads(config["job"]), Job, "job")
    torch.set_num_threads(int(job.compute.cpus_per_worker))
    return {name: _rates(job, rows) for name, rows in config["rows"].items()}


def _rates(job: Any, rows: list[Any]) -> dict[str, list[float]]:
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    off = job.model_copy(update={"data": job.data.model_copy(update={"feature_cache": "off"})})
    cached = build_trainer(job, {"train": rows}, load_deepspeed_config(job))
    uncached = build_trainer(off, {"train": rows}, load_deepspeed_config(job))
    bare = _Bare(cached)
    turns = {"uncached": uncached.train_epoch, "cached": cached.train_epoch, "bare": bare.train_epoch}
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for epoch in range(ROUNDS + 1):
        for name, work in turns.items():
            rate = timed(lambda work=work, epoch=epoch: work(epoch), len(rows))
            if epoch:  # the first decodes the rows and warms up
                rates[name].append(rate)
    return rates


class _Bare:
    """Plain PyTorch loop: the same model, with all data as tensors in memory."""

    def __init__(self, worker: Any) -> None:
        import torch

        from rayfuse.data.collate import collate
        from rayfuse.model.fused import FusedModel
        from rayfuse.training.param_groups import build_param_groups

        self.worker, store = worker, worker.data.sample_caches["train"]
        whole = collate([store[number] for number in range(len(store))], worker.data.modalities)
        self.features = {
            name: {key: tensor[part.index[:, 0]] for key, tensor in part.features.items()}
            for name, part in whole.inputs.items()
        }
        self.targets = whole.targets
        self.model = FusedModel(worker.job).train()
        self.optimizer = torch.optim.AdamW(build_param_groups(worker.job, self.model))
        self.parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]

    def train_epoch(self, epoch: int) -> None:
        import torch

        from rayfuse.data.collate import Batch, EncoderBatch
        from rayfuse.training.precision import DTYPES

        plan, dtype = self.worker.data.sampler, DTYPES[self.worker.precision]
        for step in range(plan.steps_per_epoch):
            rows = torch.from_numpy(plan.step_indices(epoch, step, 0, 1)[0])
            each = torch.arange(len(rows)).unsqueeze(1)
            inputs = {
                name: EncoderBatch({key: tensor[rows] for key, tensor in features.items()}, each)
                for name, features in self.features.items()
            }
            targets = {name: values[rows] for name, values in self.targets.items()}
            batch = Batch(inputs, targets, torch.ones(len(rows)))
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = self.model.total_loss(self.model.losses(self.model(batch), batch), batch) / len(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
