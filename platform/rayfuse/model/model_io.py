"""Save and load models as self-contained folders of the resolved job, weights and pretrained encoders.

    FOLDER/rayfuse.json              format number and the resolved job; encoder paths are relative
    FOLDER/weights.safetensors       trained tensors, by name
    FOLDER/encoders/INPUT/…          the Hugging Face folder of a pretrained encoder
    FOLDER/tasks/TASK/…              that of the language model of a task

Only JSON, safetensors and tokenizer files; nothing executable.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.pretrained import SAFE_SUFFIXES, download_model
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec
from rayfuse.speech.voice_folder import is_voice

FORMAT_VERSION = 1
_SPEC_FILE = "rayfuse.json"
_WEIGHTS_FILE = "weights.safetensors"


def save_model(
    folder: Path, job: Job, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a fitted job, its trained tensors and `metadata` to a model folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    content = job.model_dump(mode="json")
    for path, pretrained in job.pretrained_models():
        relative = _relative_folder(path)
        _copy_pretrained(pretrained.model, folder / relative)
        block = content
        for key in path:
            block = block[key]
        block["model"] = f"./{relative}"
        if block.get("lora"):
            block["lora"]["init_from"] = None  # the trained adapters are in the weights
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS_FILE)
    (folder / _SPEC_FILE).write_text(
        json.dumps({"format": FORMAT_VERSION, "metadata": dict(metadata), "job": content}, indent=1)
    )


def load_job(folder: Path) -> tuple[Job, dict[str, Any]]:
    """Load the job of a model folder, with absolute encoder paths, and its metadata.

    Raises DataError if it is missing, damaged, or in another format.
    """
    path = folder / _SPEC_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: not a model folder: {error}; pass a folder that contains a valid {_SPEC_FILE}"
        ) from None
    if is_voice(folder):
        raise DataError(
            f"{folder}: a voice, which makes no predictions; serve it with `rayfuse serve up`, and call /v1/audio/speech"
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT_VERSION:
        found = content.get("format") if isinstance(content, dict) else None
        raise DataError(
            f"{folder}: model format {found} is not supported; this version reads {FORMAT_VERSION}"
        )
    try:
        return validate_spec(content.get("job"), Job, str(path), str(folder.resolve())), content.get(
            "metadata"
        ) or {}
    except SpecError as error:
        raise DataError(f"{folder}: invalid job in {_SPEC_FILE}: {error}") from None


def load_model(folder: Path) -> tuple[Job, FusedModel]:
    """Load a folder's job and model, in evaluation mode on the CPU. Raises DataError if it is damaged."""
    job, _ = load_job(folder)
    weights = load_safetensors(folder / _WEIGHTS_FILE)
    model = FusedModel(job)
    load_weights(model, weights)
    return job, model.eval()


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a safetensors file. Raises DataError if it is missing or incomplete."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: missing or incomplete safetensors file: {error}; copy or create it again"
        ) from None


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load trained tensors by name. Raises DataError if names or shapes do not match the model."""
    expected = set(trainable_state_dict(model))
    for problem, names in (
        ("are missing", expected - weights.keys()),
        ("are unexpected", weights.keys() - expected),
    ):
        if names:
            raise DataError(
                f"the weights do not match this model: {len(names)} tensors {problem}, such as {min(names)}; load the "
                "weights of a model with the same spec"
            )
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the weights do not match this model: {reason}") from None


def _relative_folder(path: tuple[str, ...]) -> str:
    """Return the folder of the pretrained model at some keys of the job: encoders/INPUT/… or tasks/TASK."""
    section, name, *inner = path
    return "/".join(["encoders", name, *inner[1:]] if section == "inputs" else path)


def _copy_pretrained(model: str, target: Path) -> None:
    """Copy a Hugging Face model from a folder, URL or the hub, except files that may contain code."""
    shutil.copytree(download_model(model), target, dirs_exist_ok=True, ignore=_ignore_unsafe_files)


def _ignore_unsafe_files(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if (not Path(folder, name).is_dir() and Path(name).suffix not in SAFE_SUFFIXES)
        or name.startswith(".")
    ]
