"""What decides what a frozen encoder makes of a value: two that are alike in it may share their outputs."""

import hashlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rayfuse.errors import SpecError
from rayfuse.modalities.pretrained import SAFE_ENDINGS, whole_folder
from rayfuse.model.custom import load_class
from rayfuse.model.encoders import Encoder, build_encoder
from rayfuse.spec.encoders import CustomEncoder, HuggingFaceEncoder, encoders_in
from rayfuse.spec.inputs import Input

_FORMAT = 1
_OF_TRAINING = ("train", "lr", "layer_decay", "lora", "ia3", "oft")
"""Options of encoders that act only where something is trained."""
_AROUND = {"encoder", "optional", "max_items", "column", "augment", "align"}
"""Options of inputs that say where values come from and what comes after, and not what is made of one."""
_VERSIONS = ("rayfuse", "transformers", "torch")
"""What prepares values and runs encoders; another version may do so otherwise."""


def encoder_identity(options: Input, numbers: str) -> dict[str, Any]:
    """All that the outputs of an input's encoder depend on beside the value: JSON.

    numbers: what it computes in. Reads the files of pretrained encoders whole, for their digest; one's own are built,
    and are known by their weights and by the file of their class. Raises SpecError where those draw their weights at
    random, for then no two of them are alike.
    """
    encoder = options.encoder.model_dump(mode="json")
    blocks = [encoder]
    for path, part in encoders_in(options.encoder):
        block = encoder
        for key in path:
            block = block[key]
            blocks.append(block)
        if isinstance(part, HuggingFaceEncoder):
            block["model"] = folder_digest(whole_folder(part.model))
        if isinstance(part, CustomEncoder):
            block["class"] = _source_digest(part)
            block["weights"] = _weights_digest(options, part)
    for block in blocks:
        for key in _OF_TRAINING:
            block.pop(key, None)
    return {
        "format": _FORMAT,
        "encoder": encoder,
        "input": options.model_dump(mode="json", exclude=_AROUND),
        "numbers": numbers,
        "versions": {name: version(name) for name in _VERSIONS},
    }


def identity_digest(identity: dict[str, Any]) -> str:
    """A short name for it: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def _source_digest(encoder: CustomEncoder) -> str:
    file = inspect.getfile(load_class(encoder.type, Encoder))
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()


def _weights_digest(options: Input, encoder: CustomEncoder) -> str:
    """A hash of all tensors of an input's encoder that has a class of one's own in it."""
    found, again = (_built_digest(options, seed) for seed in (0, 1))
    if found != again:
        raise SpecError(
            f"{encoder.type}: `train: frozen` keeps its weights, and it draws some of them at random; load all of them "
            "in __init__, or leave `train` out"
        )
    return found


def _built_digest(options: Input, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = build_encoder(options).state_dict()
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def folder_digest(folder: Path) -> str:
    """A hash of a pretrained encoder's weights, settings and vocabularies, whatever the folder is called."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.suffix in SAFE_ENDINGS and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()
