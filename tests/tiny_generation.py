"""Tiny jobs of generation tasks, and their batches."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_jobs
import tiny_language_models
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor

TEXT = {"type": "text", "max_tokens": 8, "encoder": {"type": "prompt"}}
CROSS_ATTENTION = {
    "inject": {"type": "cross_attention", "every": 1, "heads": 2, "head_dim": 8},
    "prompt": "Asked: {text} Answer.",
}
"""Options of a task whose model attends to the image."""
PATCHES = {"type": "transformer", "hidden_size": 8, "heads": 2, "layers": 1, "pool": "none", "patch_size": 4}
"""Encoder of several tokens for each image."""


def generation_job(
    folder: Path, family: str = "smollm", task: dict[str, Any] | None = None, **overrides: Any
) -> Any:
    """Return a job over an optional image and an optional text, which go into the prompt of a tiny model of a family."""
    model = folder / family
    if not model.exists():
        tiny_language_models.ALL[family](model)
    options = {"prompt": "{image}Asked: {text} Answer.", "max_tokens": 12, "decoded_rows": 4, **(task or {})}
    return tiny_jobs.tiny_job(
        folder / "data",
        **{
            "inputs.text": {**TEXT, "optional": True},
            "fusion": {"type": "soft_tokens"},
            "tasks": {"answer": {"type": "generation", "model": str(model), "column": "label", **options}},
            "train.early_stopping": None,
            **overrides,
        },
    )


def make_rows(folder: Path, train: int = 16, test: int = 6) -> None:
    """Write rows of which some lack the image and some the text, with replies of different lengths."""
    for name, count in (("train", train), ("test", test)):
        path = tiny_jobs.make_rows(folder / "data", count, name)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["photo"] = row.get("image")
            if number % 4 == 3:
                del row["text"]
        tiny_jobs.write_rows(path, rows)


def load_batch(job: Any, numbers: Sequence[int] | None = None, split: str = "train") -> tuple[Any, Batch]:
    """Return the fitted job and a batch of some of its rows; rows without numbers are all of them."""
    fitted, dataset = load_dataset(job)
    preprocessor = Preprocessor(fitted.inputs, fitted.tasks)
    rows = dataset.splits[split]
    chosen = range(len(rows)) if numbers is None else numbers
    samples = [preprocessor.from_row(rows[number]) for number in chosen]
    return fitted, collate(samples, preprocessor.modalities, add_dummies=True)


def open_gates(model: Any, seed: int = 0) -> Any:
    """Give the gated layers of a model weights with which its replies depend on the image; return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.tasks["answer"].cross_attention.named_parameters():
            if "gate" in name:
                parameter.fill_(0.7)
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=generator)
    return model


def speech_job(
    folder: Path, task: dict[str, Any] | None = None, train: str = "lora", **overrides: Any
) -> Any:
    """Return a job whose task transcribes an optional clip with a tiny Whisper; an optional image is classified too."""
    model = folder / "whisper"
    if not model.exists():
        tiny_language_models.whisper(model)
    encoder = {"type": "huggingface", "model": str(model), "train": train, "pool": "none"}
    clip = {"type": "audio", "sample_rate": 16000, "max_seconds": 0.4, "optional": True, "encoder": encoder}
    options = {
        "reads": "audio",
        "max_tokens": 12,
        "decoded_rows": 4,
        "metrics": ["wer", "cer"],
        **(task or {}),
    }
    return tiny_jobs.tiny_job(
        folder / "data",
        audio=True,
        **{
            "inputs": {
                "audio": clip,
                "image": {
                    "type": "image",
                    "size": 8,
                    "encoder": {"type": "conv", "hidden_size": 4},
                    "optional": True,
                },
            },
            "fusion": {"type": "soft_tokens"},
            "tasks": {
                "answer": {"type": "generation", "model": str(model), "column": "label", **options},
                "label": {"type": "classification", "column": "label"},
            },
            "train.early_stopping": None,
            **overrides,
        },
    )


def make_speech_rows(folder: Path, train: int = 16, test: int = 6) -> None:
    """Write rows of which some lack the clip and some the image."""
    for name, count in (("train", train), ("test", test)):
        tiny_jobs.make_rows(folder / "data", count, name, audio=True)


def dialogue_job(
    folder: Path, family: str = "qwen", task: dict[str, Any] | None = None, **overrides: Any
) -> Any:
    """Return a job whose task replies to a dialogue, with an optional image and an optional text in its last turn."""
    model = folder / family
    if not model.exists():
        tiny_language_models.ALL[family](model)
    image = {"type": "image", "size": 8, "encoder": {"type": "conv", "hidden_size": 4}, "optional": True}
    inputs = {
        "messages": {"type": "chat", "max_tokens": 130},
        "image": image,
        "room": {**TEXT, "optional": True},
    }
    options = {"column": "messages", "prompt": "{image}{room}{messages}", "max_tokens": 12, "decoded_rows": 4}
    return tiny_jobs.tiny_job(
        folder / "data",
        **{
            "inputs": inputs,
            "fusion": {"type": "soft_tokens"},
            "tasks": {"reply": {"type": "generation", "model": str(model), **options, **(task or {})}},
            "train.early_stopping": None,
            **overrides,
        },
    )


def make_dialogues(folder: Path, train: int = 12, test: int = 6) -> None:
    """Write rows of dialogues of one to three turns that end with a reply; some have an image, a room or a system's turn."""
    for name, count in (("train", train), ("test", test)):
        path = tiny_jobs.make_rows(folder / "data", count, name)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        tiny_jobs.write_rows(path, [_dialogue(number, row) for number, row in enumerate(rows)])


def _dialogue(number: int, row: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind."}] * (number % 2)
    for turn in range(1 + number % 3):
        messages.append({"role": "user", "content": f"{row['text']} {turn}"})
        messages.append({"role": "assistant", "content": f"a {row['label']}"})
    image = {"image": row["image"]} if number % 4 == 0 and "image" in row else {}
    return {"messages": messages, **image, **({"room": "hall"} if number % 3 == 0 else {})}


def inputs_with_parts() -> dict[str, Any]:
    """Return the inputs of a dialogue with images in its messages."""
    return {
        "messages": {"type": "chat", "max_tokens": 130},
        "image": {
            "type": "image",
            "size": 8,
            "encoder": {"type": "conv", "hidden_size": 4},
            "part_of": "messages",
            "max_items": 3,
            "optional": True,
        },
    }


def make_dialogues_with_images(folder: Path, train: int = 12, test: int = 6) -> None:
    """Write rows of dialogues with none to two images in their messages, by path and as `data:` URI."""
    for name, count in (("train", train), ("test", test)):
        path = tiny_jobs.make_rows(folder / "data", count, name)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        tiny_jobs.write_rows(
            path, [_with_images(number, row, path.parent) for number, row in enumerate(rows)]
        )


def _with_images(number: int, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    data = base64.b64encode(tiny_jobs.write_image(folder / "data.png", "blue").read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "image", "image": row.get("image", "data.png")},
    ]
    messages = []
    for turn in range(1 + number % 3):
        content = [
            {"type": "text", "text": f"see {turn} "},
            *parts[: (number + turn) % 3],
            {"type": "text", "text": "?"},
        ]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": f"a {row['label']}"})
    while sum(isinstance(one["content"], list) and len(one["content"]) - 2 for one in messages) > 3:
        messages = messages[2:]
    return {"messages": messages}
