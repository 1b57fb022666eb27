"""Fingerprint of an encoder, used as a cache key: encoders with the same fingerprint have the same outputs."""

import hashlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rayfuse.errors import SpecError
from rayfuse.modalities.pretrained import SAFE_SUFFIXES, download_model
from rayfuse.model.encoders import build_encoder
from rayfuse.spec.encoders import CustomEncoderConfig, HuggingFaceEncoderConfig, iter_encoders
from rayfuse.spec.family import CustomConfig
from rayfuse.spec.inputs import Input

_FORMAT_VERSION = 2
_TRAINING_OPTIONS = ("train", "lr", "layer_decay", "lora", "ia3", "oft")
"""Options of encoders that affect training only."""
_EXCLUDED_INPUT_OPTIONS = {"encoder", "optional", "max_items", "column", "augment", "align"}
"""Options of inputs that do not affect the features of a value."""
_VERSIONED_PACKAGES = ("rayfuse", "transformers", "torch")
"""Packages that preprocess values and run encoders, whose versions may differ in their outputs."""


def encoder_fingerprint(options: Input, precision: str) -> dict[str, Any]:
    """Return all that the outputs of an input's encoder depend on other than the value, as JSON.

    Pretrained encoders are identified by a hash of their files; custom encoders, which are built, by their weights and
    the source file of their class. Raises SpecError if a custom encoder draws weights at random.

    precision: precision of the encoder's arithmetic.
    """
    encoder = options.encoder.model_dump(mode="json")
    blocks = [encoder]
    for path, part in iter_encoders(options.encoder):
        block = encoder
        for key in path:
            block = block[key]
            blocks.append(block)
        if isinstance(part, HuggingFaceEncoderConfig):
            block["model"] = folder_digest(download_model(part.model))
        if isinstance(part, CustomEncoderConfig):
            block["class"] = _source_digest(part)
            block["weights"] = _weights_digest(options, part)
    for block in blocks:
        for key in _TRAINING_OPTIONS:
            block.pop(key, None)
    return {
        "format": _FORMAT_VERSION,
        "encoder": encoder,
        "input": options.model_dump(mode="json", exclude=_EXCLUDED_INPUT_OPTIONS),
        "input_class": _source_digest(options) if isinstance(options, CustomConfig) else None,
        "precision": precision,
        "versions": {name: version(name) for name in _VERSIONED_PACKAGES},
    }


def fingerprint_digest(fingerprint: dict[str, Any]) -> str:
    """Return the hash of a fingerprint: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=16).hexdigest()


def _source_digest(part: CustomConfig) -> str:
    file = inspect.getfile(part.load_class())
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def _weights_digest(options: Input, encoder: CustomEncoderConfig) -> str:
    """Return the hash of all tensors of an input's encoder that contains a custom class."""
    found, again = (_state_dict_digest(options, seed) for seed in (0, 1))
    if found != again:
        raise SpecError(
            f"{encoder.type}: `train: frozen` requires fixed weights, and some are drawn at random; load all of them in "
            "__init__, or remove `train`"
        )
    return found


def _state_dict_digest(options: Input, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = build_encoder(options).state_dict()
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the hash of a pretrained encoder's weights, settings and vocabularies, independent of the folder's name."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.suffix in SAFE_SUFFIXES and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()
