"""One module per kind of input: decode, check, process. Training and serving call the same code."""

from rayfuse.modalities.audio import AudioModality
from rayfuse.modalities.base import Features, Modality
from rayfuse.modalities.image import ImageModality
from rayfuse.modalities.text import TextModality
from rayfuse.spec.inputs import Input

MODALITIES: dict[str, type[Modality]] = {
    "image": ImageModality,
    "audio": AudioModality,
    "text": TextModality,
}


def build_modality(options: Input) -> Modality:
    """The decoder and processor of one input of a job."""
    return MODALITIES[options.type](options)


__all__ = ["MODALITIES", "Features", "Modality", "build_modality"]
