"""Reasons for errors of transformers, huggingface_hub and safetensors, in terms of a job's spec and files.

All matching of those libraries' error texts is here.
"""

import json
import re

from rayfuse.formatting import first_line

_LOAD_REASONS = (
    (r"Repo id must (be in the form|use alphanumeric)", "folder not found"),
    (r"couldn't connect to", "not in the local Hugging Face cache, and the hub is not reachable"),
    (r"config file at '(?:.*/)?([^/]+)' is not a valid JSON", r"\1 is not valid JSON"),
    (r"Validation error for field '.*':\s+\w+: (.*)", r"config.json: \1"),
    (r"has model type `(.*)` but Transformers", r"transformers has no model type `\1`"),
    (r"contains custom code", "it requires custom code, which is never run"),
    (
        r"no file named model.safetensors",
        "no file named model.safetensors; other formats, such as pytorch_model.bin, may contain code and are not loaded. "
        "If you trust the file, convert it with `AutoModel.from_pretrained(folder).save_pretrained(folder)`",
    ),
    (
        r"ignore_mismatched_sizes",
        "tensors in model.safetensors have other shapes than config.json defines",
    ),
    (r"Error while deserializing", "model.safetensors is incomplete or corrupted"),
    (
        r"Couldn't instantiate the backend tokenizer",
        "no tokenizer.json, which `tokenizer.save_pretrained` writes",
    ),
    (
        r"Can't load (image processor|feature extractor) for",
        r"no preprocessor_config.json, which `save_pretrained` of the \1 writes",
    ),
    (r"Unrecognized (image processor|feature extractor) in", r"transformers has no \1 for its type of model"),
)
"""Pattern of an error's text, and the reason to report."""


def load_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that `from_pretrained` raises for missing, damaged or unsupported files."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError


def load_error_reason(error: Exception) -> str:
    """Return why a file of a model could not be loaded; for an unknown error, its type and the first line of its text."""
    text = str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"one of its files is not valid JSON: {text}"
    for pattern, reason in _LOAD_REASONS:
        if found := re.search(pattern, text):
            return found.expand(reason)
    return f"{type(error).__name__}: {first_line(text)}"
