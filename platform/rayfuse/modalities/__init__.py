"""One module per kind of input: decode, check, process. Training and serving call the same code."""

from rayfuse.modalities.audio import AudioModality
from rayfuse.modalities.base import Features, Form, Modality
from rayfuse.modalities.image import ImageModality
from rayfuse.modalities.sequence import SequenceModality
from rayfuse.modalities.series import SeriesModality
from rayfuse.modalities.table import TableModality
from rayfuse.modalities.text import TextModality
from rayfuse.modalities.video import VideoModality
from rayfuse.spec.inputs import Input

MODALITIES: dict[str, type[Modality]] = {
    "image": ImageModality,
    "audio": AudioModality,
    "video": VideoModality,
    "text": TextModality,
    "series": SeriesModality,
    "table": TableModality,
    "sequence": SequenceModality,
}


def build_modality(options: Input) -> Modality:
    """The decoder and processor of one input of a job."""
    return MODALITIES[options.type](options)


__all__ = ["MODALITIES", "Features", "Form", "Modality", "build_modality"]
