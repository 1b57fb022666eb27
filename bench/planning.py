"""What `rayfuse plan` says of a worker's memory beside what the worker then takes: three jobs of different shape.

Each is trained for a few steps in a fresh process, its rows made up: what counts is how large they are. The part that
the model accounts for is compared by itself as well, without the interpreter and its libraries. glibc's malloc is told
to give large blocks back when they are freed, which is what a plan takes for granted; what the job takes when it is
left to itself stands beside.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
STEPS = 3
LIMIT = 0.1
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}

JOBS: dict[str, dict[str, Any]] = {
    "MiniLM, LoRA, texts of 96 tokens": {
        "inputs": {
            "text": {
                "type": "text",
                "max_tokens": 96,
                "encoder": {"type": "huggingface", "model": str(MODELS / "minilm"), "train": "lora"},
            }
        },
        "train": {"batch_size": 48},
    },
    "picture and sound, convolutions": {
        "inputs": {
            "image": {"type": "image", "size": 112, "encoder": {"type": "conv", "width": 24}},
            "audio": {
                "type": "audio", "sample_rate": 8000, "max_seconds": 4, "encoder": {"type": "conv", "width": 16}
            },
        },
        "train": {"batch_size": 64},
    },
    "readings, a Transformer of 40 million numbers": {
        "inputs": {
            "series": {
                "type": "series", "channels": 8, "max_steps": 32,
                "encoder": {"type": "transformer", "width": 832, "heads": 8, "layers": 5},
            }
        },
        "train": {"batch_size": 8},
    },
}  # fmt: skip


def run() -> None:
    """Print planned and measured peaks and their ratios, with and without the process itself."""
    for name, parts in JOBS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = _write(Path(scratch), parts)
            found, left_alone = _measured(path, GIVE_BACK), _measured(path, {})
        base, peak, planned = found["baseline_bytes"], found["peak_bytes"], found["planned_bytes"]
        ratio, own = planned / peak, (planned - base) / (peak - base)
        print(
            f"plan        {name:<46} planned {planned / 1e6:6.0f} MB   measured {peak / 1e6:6.0f} MB   ratio {ratio:.3f}   "
            f"without the process ({base / 1e6:.0f} MB) {own:.3f}   within {LIMIT:.0%}"
        )
        print(f"plan        {'':<46} malloc left alone: {left_alone['peak_bytes'] / 1e6:.0f} MB")


def _measured(path: Path, malloc: dict[str, str]) -> dict[str, Any]:
    environment = {**_environment(), **malloc}
    done = subprocess.run(
        [sys.executable, __file__, str(path)], check=True, stdout=subprocess.PIPE, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "platform"), os.environ.get("PYTHONPATH")]))
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return {**os.environ, **ranks, "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}


def _write(folder: Path, parts: dict[str, Any]) -> Path:
    """The job and its rows: as many as its steps take, and some to validate with."""
    rows = parts["train"]["batch_size"] * STEPS
    chance = random.Random(0)
    (folder / "media").mkdir()
    for split, count in (("train", rows), ("validation", 16)):
        lines = [_row(folder, f"{split}{number}", parts["inputs"], chance) for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = {
        "kind": "job",
        "name": "planned",
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "fusion": {"type": "concat"},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "output": {"storage": str(folder / "runs")},
        **parts,
        "train": {**parts["train"], "epochs": 1, "precision": "fp32"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def _row(folder: Path, stem: str, inputs: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {"label": chance.choice("ab")}
    for name, options in inputs.items():
        row[name] = _VALUES[name](folder / "media" / stem, options, chance)
    return row


def _text(path: Path, options: dict[str, Any], chance: random.Random) -> str:
    return " ".join(
        chance.choice(["red", "green", "blue", "one", "two"]) for _ in range(options["max_tokens"])
    )


def _image(path: Path, options: dict[str, Any], chance: random.Random) -> str:
    from PIL import Image

    file = path.with_suffix(".png")
    Image.new("RGB", (8, 8), tuple(chance.randrange(256) for _ in range(3))).save(file)
    return str(file)


def _audio(path: Path, options: dict[str, Any], chance: random.Random) -> str:
    import numpy as np
    import soundfile

    file = path.with_suffix(".wav")
    soundfile.write(file, np.full(100, chance.random()), options["sample_rate"])
    return str(file)


def _series(path: Path, options: dict[str, Any], chance: random.Random) -> list[list[float]]:
    return [[chance.random() for _ in range(options["max_steps"])] for _ in range(options["channels"])]


_VALUES = {"text": _text, "image": _image, "audio": _audio, "series": _series}


def _train(path: str) -> dict[str, Any]:
    """Train, save and validate as a worker does, look at the process, and only then plan."""
    import torch

    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.train.checkpoints import Saver
    from rayfuse.train.engine import read_options
    from rayfuse.train.loop import Worker

    torch.set_num_threads(1)
    job, dataset = load_dataset(load_spec(path, Job, []))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    worker = Worker(job, dataset.splits, read_options(job))
    worker.saver = Saver(job.output.storage, job.train.checkpoint.keep, worker.goodness)
    for epoch in range(2):
        worker.train_epoch(epoch)
        worker.evaluator.metrics("validation")
        worker.save()
    worker.saver.wait()
    measured = worker.memory.told()

    from rayfuse.train.plan.comparison import predict

    planned = predict(job, dataset.splits["train"], measured["baseline_bytes"])
    return {**measured, "planned_bytes": planned}


if __name__ == "__main__":
    print(json.dumps(_train(sys.argv[1])))
