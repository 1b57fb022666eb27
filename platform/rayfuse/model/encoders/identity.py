"""What decides what a frozen encoder makes of a value: two that are alike in it may share their outputs."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rayfuse.modalities.pretrained import SAFE_ENDINGS, whole_folder
from rayfuse.spec.encoders import pretrained_in
from rayfuse.spec.inputs import Input

_FORMAT = 1
_OF_TRAINING = ("train", "lr", "layer_decay", "lora", "ia3", "oft")
"""Options of encoders that act only where something is trained."""
_OF_ROWS = {"encoder", "optional", "max_items", "column", "augment"}
"""Options of inputs that say where values come from, and not what is made of one."""
_VERSIONS = ("rayfuse", "transformers", "torch")
"""What prepares values and runs encoders; another version may do so otherwise."""


def encoder_identity(options: Input, numbers: str) -> dict[str, Any]:
    """All that the outputs of an input's encoder depend on beside the value: JSON.

    numbers: what it computes in. Reads the files of pretrained encoders whole, for their digest.
    """
    encoder = options.encoder.model_dump(mode="json")
    blocks = [encoder]
    for path, pretrained in pretrained_in(options.encoder):
        block = encoder
        for key in path:
            block = block[key]
            blocks.append(block)
        block["model"] = folder_digest(whole_folder(pretrained.model))
    for block in blocks:
        for key in _OF_TRAINING:
            block.pop(key, None)
    return {
        "format": _FORMAT,
        "encoder": encoder,
        "input": options.model_dump(mode="json", exclude=_OF_ROWS),
        "numbers": numbers,
        "versions": {name: version(name) for name in _VERSIONS},
    }


def identity_digest(identity: dict[str, Any]) -> str:
    """A short name for it: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def folder_digest(folder: Path) -> str:
    """A hash of a pretrained encoder's weights, settings and vocabularies, whatever the folder is called."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.suffix in SAFE_ENDINGS and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()
