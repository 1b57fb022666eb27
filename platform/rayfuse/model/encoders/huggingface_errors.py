"""Reasons for errors of transformers, huggingface_hub, safetensors and PEFT, in terms of a job's spec and files.

All matching of those libraries' error texts is here.
"""

import re

_LOAD_REASONS = (
    (r"Repo id must be in the form", "folder not found"),
    (r"couldn't connect to", "not in the local Hugging Face cache, and the hub is not reachable"),
    (r"is not a valid JSON", "config.json is not valid JSON"),
    (r"Validation error for field '.*':\s+\w+: (.*)", r"config.json: \1"),
    (r"has model type `(.*)` but Transformers", r"transformers has no model type `\1`"),
    (r"contains custom code", "it requires custom code, which is never run"),
    (r"no file named model.safetensors", "no file named model.safetensors; other formats are not loaded"),
    (
        r"ignore_mismatched_sizes",
        "tensors in model.safetensors have other shapes than config.json defines",
    ),
    (r"Error while deserializing", "model.safetensors is incomplete or corrupted"),
)
"""Pattern of an error's text, and the reason to report."""

_UNSUPPORTED_TARGET = "is not supported. Currently, only the following modules"


def load_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that `from_pretrained` raises for missing, damaged or unsupported files."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError


def load_error_reason(error: Exception) -> str:
    """Return why a model could not be loaded; for an unknown error, the first line of its text."""
    text = str(error)
    for pattern, reason in _LOAD_REASONS:
        if found := re.search(pattern, text):
            return found.expand(reason)
    return text.partition("\n")[0]


def adapter_error_reason(error: ValueError) -> tuple[str, str]:
    """Return the field of the adapter's spec that PEFT rejects, empty if unknown, and the reason."""
    from peft.utils.error import NoMatchingPeftModuleError

    if isinstance(error, NoMatchingPeftModuleError):
        return "target_modules", "no such modules"
    text = str(error).partition("\n")[0]
    if _UNSUPPORTED_TARGET in text:
        return "target_modules", "modules of a type that PEFT cannot adapt"
    return "", text
