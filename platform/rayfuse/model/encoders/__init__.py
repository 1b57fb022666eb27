"""Encoders: from the features of one input to tokens."""

from rayfuse.model.encoders.base import Encoder, FrozenEncoder
from rayfuse.spec.encoders import ENCODERS, BaseEncoderConfig, CustomEncoderConfig
from rayfuse.spec.inputs import Input


def build_encoder(options: Input) -> Encoder:
    """Build the encoder of an input, with pretrained weights if it has any.

    Raises SpecError if a custom class cannot be loaded.
    """
    return build_nested_encoder(options.type, options.encoder, options)


def build_nested_encoder(input_type: str, encoder: BaseEncoderConfig, source: Input) -> Encoder:
    """Build an encoder for features as inputs of a type have them; `source` is the input that it belongs to.

    A custom encoder is called with its `Options` and the input's options: `MyEncoder(options, source)`.
    """
    family = ENCODERS.get(input_type, ENCODERS["custom"])
    built: Encoder = family.build(encoder, source)
    return FrozenEncoder(built) if isinstance(encoder, CustomEncoderConfig) and encoder.frozen else built


__all__ = ["Encoder", "build_encoder", "build_nested_encoder"]
