"""Memory that `rayfuse plan` predicts for a worker, compared with what the worker takes, for three different jobs.

Each is trained for a few steps on synthetic rows in a new process. The model's part is also compared without the
interpreter and its libraries.
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
LIMIT = 0.25

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
    "image and audio, convolutions": {
        "inputs": {
            "image": {"type": "image", "size": 112, "encoder": {"type": "conv", "hidden_size": 24}},
            "audio": {
                "type": "audio", "sample_rate": 8000, "max_seconds": 4, "encoder": {"type": "conv", "hidden_size": 16}
            },
        },
        "train": {"batch_size": 64},
    },
    "time series, Transformer of 40M parameters": {
        "inputs": {
            "series": {
                "type": "timeseries", "channels": 8, "max_steps": 32,
                "encoder": {"type": "transformer", "hidden_size": 832, "heads": 8, "layers": 5},
            }
        },
        "train": {"batch_size": 8},
    },
}  # fmt: skip


def run() -> None:
    """Print predicted and measured peaks and their ratios, with and without the process itself."""
    for job_name, parts in JOBS.items():
        with tempfile.TemporaryDirectory() as scratch:
            path = _write(Path(scratch), parts)
            measured = _measure(path)
        base, peak, predicted = (measured[f"{name}_bytes"] for name in ("baseline", "peak", "predicted"))
        ratio, model_ratio = predicted / peak, (predicted - base) / (peak - base)
        print(
            f"plan        {job_name:<46} predicted {predicted / 1e6:6.0f} MB   measured {peak / 1e6:6.0f} MB   ratio {ratio:.3f}   "
            f"without the process ({base / 1e6:.0f} MB) {model_ratio:.3f}   within {LIMIT:.0%}"
        )


def _measure(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, str(path)], check=True, stdout=subprocess.PIPE, env=_environment()
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "platform"), os.environ.get("PYTHONPATH")]))
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return {**os.environ, **ranks, "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}


def _write(folder: Path, parts: dict[str, Any]) -> Path:
    """Write the job and its rows, enough for its steps and a validation; return the path of the job."""
    rows = parts["train"]["batch_size"] * STEPS
    rng = random.Random(0)
    (folder / "media").mkdir()
    for split, count in (("train", rows), ("validation", 16)):
        lines = [_row(folder, f"{split}{number}", parts["inputs"], rng) for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = {
        "kind": "job",
        "name": "planned",
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "fusion": {"type": "concat"},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "output": {"storage": str(folder / "runs")},
        **parts,
        "train": {**parts["train"], "epochs": 2, "precision": "fp32"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def _row(folder: Path, stem: str, inputs: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {"label": rng.choice("ab")}
    for name, options in inputs.items():
        row[name] = _VALUES[name](folder / "media" / stem, options, rng)
    return row


def _text(path: Path, options: dict[str, Any], rng: random.Random) -> str:
    return " ".join(rng.choice(["red", "green", "blue", "one", "two"]) for _ in range(options["max_tokens"]))


def _image(path: Path, options: dict[str, Any], rng: random.Random) -> str:
    from PIL import Image

    file = path.with_suffix(".png")
    Image.new("RGB", (8, 8), tuple(rng.randrange(256) for _ in range(3))).save(file)
    return str(file)


def _audio(path: Path, options: dict[str, Any], rng: random.Random) -> str:
    import numpy as np
    import soundfile

    file = path.with_suffix(".wav")
    soundfile.write(file, np.full(100, rng.random()), options["sample_rate"])
    return str(file)


def _series(path: Path, options: dict[str, Any], rng: random.Random) -> list[list[float]]:
    return [[rng.random() for _ in range(options["max_steps"])] for _ in range(options["channels"])]


_VALUES = {"text": _text, "image": _image, "audio": _audio, "series": _series}


def _train(path: str) -> dict[str, Any]:
    """Train, save and validate as a worker does, measure the process, and only then predict its memory."""
    import torch

    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    torch.set_num_threads(1)
    job, dataset = load_dataset(load_spec(path, Job))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    Path(job.output.storage).mkdir()
    trainer = build_trainer(job, dataset.splits, load_deepspeed_config(job), run=job.output.storage)
    trainer.run(print)
    measured = trainer.peak_memory.to_dict()

    from rayfuse.estimate.comparison import predict_peak_bytes

    predicted = predict_peak_bytes(job, dataset.splits["train"], measured["baseline_bytes"])
    return {**measured, "predicted_bytes": predicted}


if __name__ == "__main__":
    print(json.dumps(_train(sys.argv[1])))
