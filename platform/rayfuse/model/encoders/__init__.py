"""What turns the features of one input into tokens."""

from rayfuse.model.custom import custom_options, load_class
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.conv_audio import ConvAudioEncoder
from rayfuse.model.encoders.conv_image import ConvImageEncoder
from rayfuse.model.encoders.conv_text import ConvTextEncoder
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.spec.encoders import CustomEncoder
from rayfuse.spec.inputs import Input

ENCODERS: dict[tuple[str, str], type[Encoder]] = {
    ("image", "conv"): ConvImageEncoder,
    ("audio", "conv"): ConvAudioEncoder,
    ("text", "conv"): ConvTextEncoder,
    ("image", "huggingface"): HuggingFaceEncoder,
    ("audio", "huggingface"): HuggingFaceEncoder,
    ("text", "huggingface"): HuggingFaceEncoder,
}


def build_encoder(options: Input) -> Encoder:
    """The encoder of one input of a job, with its pretrained weights if it has any.

    An encoder of one's own is called with its own options and the input's: `MyEncoder(options, input)`.
    """
    encoder = options.encoder
    if isinstance(encoder, CustomEncoder):
        found = load_class(encoder.type, Encoder)
        return found(custom_options(encoder, found), options)
    return ENCODERS[options.type, encoder.type](encoder, options)


__all__ = ["ENCODERS", "Encoder", "build_encoder"]
