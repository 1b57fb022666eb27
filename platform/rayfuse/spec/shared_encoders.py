"""Encoders that several inputs share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders import NGramsEncoderConfig
from rayfuse.spec.error_messages import suggest_nearest

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput

_OF_ONE_INPUT = {
    "align",
    "augment",
    "column",
    "encoder",
    "max_tokens",
    "optional",
    "retrieve",
    "shares_encoder",
    "template",
}
"""Options in which inputs with the same encoder may differ."""


def with_shared_encoders(content: dict[str, Any]) -> dict[str, Any]:
    """Return a job's content with the encoder of each input that has `shares_encoder` and no `encoder`."""
    inputs = content.get("inputs")
    if not isinstance(inputs, dict):
        return content
    return {**content, "inputs": {name: _with_encoder(options, inputs) for name, options in inputs.items()}}


def _with_encoder(options: Any, inputs: Mapping[str, Any]) -> Any:
    source = options.get("shares_encoder") if isinstance(options, dict) else None
    owner = inputs.get(source) if isinstance(source, str) else None
    if isinstance(owner, dict) and "encoder" in owner and "encoder" not in options:
        return {**options, "encoder": owner["encoder"]}
    return options


def validate_shared_encoders(inputs: "Mapping[str, BaseInput]") -> Problems:
    """Yield an error for each input that cannot have the encoder of the input in its `shares_encoder`."""
    for name, options in inputs.items():
        if options.shares_encoder is not None:
            reason = _refusal(name, options, inputs)
            if reason:
                yield f"inputs.{name}.shares_encoder", reason


def _refusal(name: str, options: "BaseInput", inputs: "Mapping[str, BaseInput]") -> str | None:
    source = options.shares_encoder
    owner = inputs.get(source or "")
    others = [other for other in inputs if other != name]
    if owner is None or source == name:
        return f"no other input `{source}`; {suggest_nearest(source or '', others)}"
    if owner.shares_encoder is not None:
        return f"`{source}` has the encoder of `{owner.shares_encoder}`; name that input"
    if owner.type != options.type:
        return f"`{source}` is an input of type {owner.type}; name one of type {options.type}"
    if isinstance(owner.encoder, NGramsEncoderConfig):
        return f"the n-grams of `{source}` are those of its own texts; leave it out, or use another encoder"
    if owner.encoder != options.encoder:
        return f"the encoder of `{name}` is not that of `{source}`; remove inputs.{name}.encoder"
    mine, other = (one.model_dump(exclude=_OF_ONE_INPUT) for one in (options, owner))
    different = next((key for key, value in mine.items() if other[key] != value), None)
    if different is not None:
        return f"`{different}` is not that of `{source}`, whose encoder reads it; use the same in both"
    return None
