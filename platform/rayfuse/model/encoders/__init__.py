"""What turns the features of one input into tokens."""

from typing import Any

from rayfuse.model.custom import custom_options, load_class
from rayfuse.model.encoders.base import Encoder, FrozenEncoder
from rayfuse.model.encoders.conv_audio import ConvAudioEncoder
from rayfuse.model.encoders.conv_image import ConvImageEncoder
from rayfuse.model.encoders.conv_text import ConvTextEncoder
from rayfuse.model.encoders.embedding_sequence import EmbeddingSequenceEncoder
from rayfuse.model.encoders.frames_video import FramesVideoEncoder
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.encoders.mlp_table import MLPTableEncoder
from rayfuse.model.encoders.resnet_audio import ResnetAudioEncoder
from rayfuse.model.encoders.resnet_image import ResnetImageEncoder
from rayfuse.model.encoders.steps_audio import StepsAudioEncoder
from rayfuse.model.encoders.steps_sequence import StepsSequenceEncoder
from rayfuse.model.encoders.steps_series import StepsSeriesEncoder
from rayfuse.model.encoders.steps_text import StepsTextEncoder
from rayfuse.model.encoders.transformer_image import PatchTransformerImageEncoder
from rayfuse.spec.encoders import CustomEncoder
from rayfuse.spec.inputs import Input

ENCODERS: dict[tuple[str, str], type[Encoder]] = {
    ("image", "conv"): ConvImageEncoder,
    ("image", "resnet"): ResnetImageEncoder,
    ("image", "transformer"): PatchTransformerImageEncoder,
    ("image", "huggingface"): HuggingFaceEncoder,
    ("audio", "conv"): ConvAudioEncoder,
    ("audio", "resnet"): ResnetAudioEncoder,
    ("audio", "gru"): StepsAudioEncoder,
    ("audio", "lstm"): StepsAudioEncoder,
    ("audio", "transformer"): StepsAudioEncoder,
    ("audio", "huggingface"): HuggingFaceEncoder,
    ("text", "conv"): ConvTextEncoder,
    ("text", "gru"): StepsTextEncoder,
    ("text", "lstm"): StepsTextEncoder,
    ("text", "transformer"): StepsTextEncoder,
    ("text", "huggingface"): HuggingFaceEncoder,
    ("video", "frames"): FramesVideoEncoder,
    ("series", "conv"): StepsSeriesEncoder,
    ("series", "gru"): StepsSeriesEncoder,
    ("series", "lstm"): StepsSeriesEncoder,
    ("series", "transformer"): StepsSeriesEncoder,
    ("table", "mlp"): MLPTableEncoder,
    ("sequence", "embedding"): EmbeddingSequenceEncoder,
    ("sequence", "gru"): StepsSequenceEncoder,
    ("sequence", "transformer"): StepsSequenceEncoder,
}
"""By the types of the input and of the encoder."""


def build_encoder(options: Input) -> Encoder:
    """The encoder of one input of a job, with its pretrained weights if it has any."""
    return build_block(options.type, options.encoder, options)


def build_block(kind: str, encoder: Any, source: Any) -> Encoder:
    """What an encoder's block describes, for features as inputs of one kind have them.

    An encoder of one's own is called with its own options and the input's: `MyEncoder(options, input)`.
    """
    if isinstance(encoder, CustomEncoder):
        found = load_class(encoder.type, Encoder)
        built = found(custom_options(encoder, found), source)
        return FrozenEncoder(built) if encoder.frozen else built
    return ENCODERS[kind, encoder.type](encoder, source)


__all__ = ["ENCODERS", "Encoder", "build_block", "build_encoder"]
