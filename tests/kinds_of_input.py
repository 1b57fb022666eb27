"""A tiny job with inputs of every type and custom encoders by import path."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tiny_clips import make_clip
from tiny_jobs import write_image, write_rows
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import Tokens, as_single_token, mean_pool
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "images": {"type": "conv", "hidden_size": 4},
    "sound": {"type": "conv", "hidden_size": 4},
    "text": {"type": "ngrams", "hidden_size": 8},
    "clip": {"type": "frames", "encoder": {"type": "conv", "hidden_size": 4}},
    "sensor": {"type": "conv", "hidden_size": 8, "layers": 2},
    "person": {"type": "mlp", "hidden_size": 8},
    "history": {"type": "embedding", "hidden_size": 8},
}
"""Encoders of Rayfuse for each of the inputs, in place of the custom ones."""
CITIES = ["Rome", "Oslo", "Bern"]


class Frames(Encoder):
    """Mean color of the unmasked frames."""

    width = 3

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(3, 3)

    def forward(self, frames: torch.Tensor, frame_mask: torch.Tensor, frame_times: torch.Tensor) -> Tokens:  # type: ignore[override]
        colours = self.linear(frames.mean(dim=(3, 4)))
        assert frame_times.shape == frame_mask.shape
        return as_single_token(mean_pool(colours, frame_mask.bool()))


class Readings(Encoder):
    """Mean of each channel."""

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.width = source.num_channels
        self.linear = nn.Linear(self.width, self.width)

    def forward(self, values: torch.Tensor, observed: torch.Tensor, step_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        counted = (observed * step_mask.unsqueeze(1)).sum(dim=2).clamp(min=1)
        return as_single_token(self.linear((values * observed).sum(dim=2) / counted))


class Columns(Encoder):
    """Numbers, and an embedding per category column."""

    width = 8

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.numbers = nn.Linear(2 * len(source.numeric_columns), 8)
        self.names = nn.ModuleList(
            nn.Embedding(2 + len(known), 8) for known in source.category_vocabularies.values()
        )

    def forward(self, numbers: torch.Tensor, missing: torch.Tensor, categories: torch.Tensor) -> Tokens:  # type: ignore[override]
        parts = [self.numbers(torch.cat([numbers, missing], dim=1))]
        parts += [embed(categories[:, place]) for place, embed in enumerate(self.names)]
        return as_single_token(torch.stack(parts).sum(dim=0))


class Items(Encoder):
    """Mean of the item embeddings."""

    width = 8

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.items = nn.Embedding(2 + len(source.vocabulary), 8)
        self.age = nn.Linear(1, 8)

    def forward(self, items: torch.Tensor, ages: torch.Tensor, item_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(mean_pool(self.items(items) + self.age(ages.unsqueeze(2)), item_mask.bool()))


def own(name: str) -> dict[str, str]:
    return {"type": f"{__name__}:{name}"}


def inputs() -> dict[str, Any]:
    sound = {"sample_rate": 8000, "max_seconds": 0.5, "encoder": {"type": "conv", "hidden_size": 4}}
    return {
        "clip": {"type": "video", "num_frames": 3, "size": 16, "encoder": own("Frames"), "optional": True},
        "sound": {"type": "audio", "audio_of": "clip", "optional": True, **sound},
        "sensor": {
            "type": "timeseries",
            "channels": ["x", "y"],
            "encoder": own("Readings"),
            "optional": True,
        },
        "person": {
            "type": "tabular",
            "columns": ["age", "city"],
            "encoder": own("Columns"),
            "optional": True,
        },
        "history": {"type": "item_sequence", "encoder": own("Items"), "optional": True},
        "images": {
            "type": "image",
            "size": 8,
            "max_items": 3,
            "encoder": {"type": "conv", "hidden_size": 4},
            "optional": True,
        },
        "text": {"type": "text", "max_tokens": 16, "encoder": {"type": "conv", "hidden_size": 4}},
    }


def make_rows(folder: Path, n: int = 32) -> list[dict[str, Any]]:
    """Rows with inputs of every type; every fourth has no video, and one of the two videos has no audio."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for colour in ("red", "green"):
        write_image(folder / f"{colour}.png", colour)
    (folder / "dark.mp4").write_bytes(make_clip((20, 30), pitch=300.0))
    (folder / "bright.mp4").write_bytes(make_clip((200, 220, 210)))
    return [
        {
            "clip": None if i % 4 == 3 else ["dark.mp4", "bright.mp4"][i % 2],
            "sensor": [[rng.gauss(i % 2, 1), None], [rng.random(), rng.random()]],
            "age": None if i % 5 == 0 else 20 + i,
            "city": CITIES[i % 3],
            "history": [{"id": i % 4, "time": 5 * k} for k in range(i % 3)],
            "images": ["red.png", "green.png", "red.png"][: i % 4],
            "text": "bright or dark?",
            "label": ["dark", "bright"][i % 2],
        }
        for i in range(n)
    ]


def make_job(folder: Path, rows: list[dict[str, Any]] | None = None, **overrides: Any) -> Job:
    write_rows(folder / "train.jsonl", rows or make_rows(folder))
    content = {
        "kind": "job",
        "name": "kinds",
        "data": {"train": str(folder / "train.jsonl"), "validation": {"fraction": 0.25}},
        "inputs": inputs(),
        "align": {"type": "linear", "dim": 8},
        "fusion": {"type": "concat", "hidden": 8, "layers": 1},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "output": {"storage": str(folder / "runs")},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(content))
    return load_spec(path, Job, overrides)
