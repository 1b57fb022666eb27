"""Tiny rows, jobs and models for tests, created in a second without network or shared files.

Task: a text asks for the color of an 8 × 8 image (`make_rows` writes red, green and blue ones) or for the pitch of a
short clip (low, high). Image and clip are optional.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
PITCHES = {"low": 200.0, "high": 1000.0}
_RATE = 8000
_SECONDS = 0.1


def make_rows(folder: Path, n: int = 48, name: str = "train", audio: bool = False, seed: int = 0) -> Path:
    """Write `n` rows with their images (and clips) as FOLDER/NAME.jsonl; every fifth row has no image or clip.

    Columns: image, audio (with `audio`), text, label (a color or pitch; `unknown` if the required input is
    absent), brightness (a number).
    """
    rng = random.Random(f"{name} {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_make_row(folder, f"{name}{i}", i, audio, rng) for i in range(n)]
    return write_rows(folder / f"{name}.jsonl", rows)


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _make_row(folder: Path, stem: str, number: int, audio: bool, rng: random.Random) -> dict[str, Any]:
    colour, pitch = list(COLOURS)[number % 3], rng.choice(list(PITCHES))
    question = rng.choice(["colour", "pitch"]) if audio else "colour"
    absent = question if number % 5 == 4 else None
    row: dict[str, Any] = {"text": f"which {question} is {rng.choice(['this', 'it', 'here'])}?"}
    if absent != "colour":
        row["image"] = write_image(folder / f"{stem}.png", colour, rng).name
    if audio and absent != "pitch":
        row["audio"] = write_audio(folder / f"{stem}.wav", pitch).name
    row["label"] = "unknown" if absent else colour if question == "colour" else pitch
    row["brightness"] = sum(COLOURS[colour]) / 3 + number % 7
    return row


def write_image(path: Path, colour: str = "red", rng: random.Random | None = None) -> Path:
    """Write a PNG of 8 × 8 pixels of about one color."""
    from PIL import Image

    rng = rng or random.Random(0)
    shade = tuple(max(0, min(255, part + rng.randint(-20, 20))) for part in COLOURS[colour])
    Image.new("RGB", (8, 8), shade).save(path)
    return path


def roughen(folder: Path) -> None:
    """Add noise to the images: under group norm, uniform ones have gradients near zero, which Adam amplifies."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.png")):
        shade = np.asarray(Image.open(path), dtype=np.float64)
        Image.fromarray(np.clip(shade + rng.normal(0, 40, shade.shape), 0, 255).astype(np.uint8)).save(path)


def write_audio(path: Path, pitch: str = "low") -> Path:
    """Write a WAV of 0.1 s with one tone."""
    import numpy as np
    import soundfile

    times = np.arange(int(_RATE * _SECONDS)) / _RATE
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * PITCHES[pitch] * times), _RATE)
    return path


def job_content(folder: Path, audio: bool = False) -> dict[str, Any]:
    """Return the tiny job over FOLDER/train.jsonl and FOLDER/test.jsonl as in YAML."""
    inputs: dict[str, Any] = {
        "image": {
            "type": "image",
            "size": 8,
            "encoder": {"type": "conv", "hidden_size": 4},
            "optional": True,
        },
        "text": {"type": "text", "max_tokens": 32, "encoder": {"type": "conv", "hidden_size": 4}},
    }
    if audio:
        clip = {"type": "audio", "sample_rate": _RATE, "max_seconds": _SECONDS, "optional": True}
        inputs["audio"] = {**clip, "encoder": {"type": "conv", "hidden_size": 4}}
    return {
        "kind": "job",
        "name": "tiny",
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": {"fraction": 0.25},
            "test": str(folder / "test.jsonl"),
        },
        "inputs": inputs,
        "align": {"type": "linear", "dim": 16},
        "fusion": {"type": "concat", "hidden": 16, "layers": 1, "dropout": 0.0},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "train": {
            "epochs": 2,
            "batch_size": 16,
            "optimizer": {"lr": 0.01},
            "early_stopping": {"metric": "answer/accuracy", "patience": 3},
            "precision": "fp32",
            "checkpoint": {"interrupt_timeout": 300},  # a busy machine is slow
        },
        "output": {"storage": str(folder / "runs")},
    }


def tiny_job(folder: Path, audio: bool = False, **overrides: Any) -> Any:
    """Write rows (where there are none) and FOLDER/job.yaml, and return the job: `**{"train.epochs": 1}` overrides."""
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec

    for name, n in (("train", 48), ("test", 24)):
        if not (folder / f"{name}.jsonl").exists():
            make_rows(folder, n, name, audio)
    path = folder / "job.yaml"  # JSON is YAML too
    path.write_text(json.dumps(job_content(folder, audio), indent=1))
    return load_spec(path, Job, overrides)


def make_model_folder(folder: Path, steps: int = 60, seed: int = 0, job: Any = None) -> Path:
    """Train a tiny job (`tiny_job(FOLDER/data)` unless given) in plain PyTorch and save it as FOLDER/model.

    With 60 steps it knows nearly all colours (about a second); with 0 it is untrained.
    """
    import torch

    from rayfuse.data.dataset import load_dataset
    from rayfuse.model.fused import FusedModel, trainable_state_dict
    from rayfuse.model.model_io import save_model

    torch.manual_seed(seed)
    job, dataset = load_dataset(job or tiny_job(folder / "data"))
    model = FusedModel(job)
    train_steps(model, dataset.splits["train"], job, steps)
    weights = {name: tensor.detach() for name, tensor in trainable_state_dict(model).items()}
    save_model(folder / "model", job, weights, {"made by": "a test"})
    return folder / "model"


def train_steps(model: Any, rows: Sequence[Any], job: Any, steps: int) -> None:
    import torch

    from rayfuse.data.collate import collate
    from rayfuse.data.samples import Preprocessor

    preprocessor = Preprocessor(job.inputs, job.tasks)
    batch = collate([preprocessor.from_row(row) for row in rows], preprocessor.modalities)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for more of them, on a busy machine for long
    for _ in range(steps):
        optimizer.zero_grad()
        model.total_loss(model.losses(model(batch), batch), batch).div(batch.batch_size).backward()
        optimizer.step()
    torch.set_num_threads(threads)
