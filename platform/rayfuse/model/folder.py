"""A model as a folder that needs nothing else: the resolved job, weights, and pretrained encoders.

    FOLDER/rayfuse.json              format number and the resolved job; encoder paths are relative
    FOLDER/weights.safetensors       the tensors that training changed, by name
    FOLDER/encoders/INPUT/…          the Hugging Face folder of a pretrained encoder

Nothing in it is executable: JSON, safetensors and tokenizer files.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.pretrained import SAFE_ENDINGS, whole_folder
from rayfuse.model.fused import FusedModel, trained_tensors
from rayfuse.spec.encoders import pretrained_in
from rayfuse.spec.job import Job
from rayfuse.spec.load import check

FORMAT = 1
_SPEC = "rayfuse.json"
_WEIGHTS = "weights.safetensors"


def save_model(folder: Path, job: Job, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write a fitted job and its trained tensors as a model folder; `about` is kept with the spec."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    content = job.model_dump(mode="json")
    for name, options in job.inputs.items():
        for path, encoder in pretrained_in(options.encoder):
            inside = "/".join(["encoders", name, *path])
            _copy_encoder(encoder.model, folder / inside)
            block = content["inputs"][name]["encoder"]
            for key in path:
                block = block[key]
            block["model"] = f"./{inside}"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS)
    (folder / _SPEC).write_text(
        json.dumps({"format": FORMAT, "about": dict(about), "job": content}, indent=1)
    )


def read_job(folder: Path) -> tuple[Job, dict[str, Any]]:
    """The job of a model folder, its encoder paths made absolute, and what was noted about it."""
    path = folder / _SPEC
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: not a model folder: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise DataError(f"{folder}: model format {found}; this version reads {FORMAT}")
    try:
        return check(content.get("job"), Job, str(path), str(folder.resolve())), content.get("about") or {}
    except SpecError as error:
        raise DataError(f"{folder}: not a whole model folder: {error}") from None


def load_model(folder: Path) -> tuple[Job, FusedModel]:
    """Build the model of a folder with its trained weights, in evaluation mode on the CPU."""
    job, _ = read_job(folder)
    weights = read_tensors(folder / _WEIGHTS)
    model = FusedModel(job)
    load_weights(model, weights)
    return job, model.eval()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises DataError where it is absent or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a whole file of tensors: {error}; copy or make it again") from None


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put trained tensors in place by name. Raises DataError where names or shapes do not fit."""
    wanted = set(trained_tensors(model))
    for side, names in (("are missing", wanted - weights.keys()), ("have no place", weights.keys() - wanted)):
        if names:
            raise DataError(
                f"the weights do not belong to this model: {len(names)} tensors {side}, such as {min(names)}"
            )
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the weights do not fit this model: {reason}") from None


def _copy_encoder(model: str, target: Path) -> None:
    """Copy a Hugging Face folder, here or at a URL, or a hub model's, but for what could hold code."""
    shutil.copytree(whole_folder(model), target, dirs_exist_ok=True, ignore=_unsafe)


def _unsafe(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if (not Path(folder, name).is_dir() and Path(name).suffix not in SAFE_ENDINGS) or name.startswith(".")
    ]
