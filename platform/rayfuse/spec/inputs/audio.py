"""Audio."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.augment import AudioAugment
from rayfuse.spec.base import Problems
from rayfuse.spec.encoders import (
    AudioEncoderConfig,
    ConvEncoderConfig,
    HuggingFaceEncoderConfig,
)
from rayfuse.spec.inputs.parts import PartInput
from rayfuse.spec.inputs.video import VideoInput

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class AudioInput(PartInput):
    """Audio, in any format that libsndfile or FFmpeg reads, mixed down to one channel.

    The audio of a video is an input as well: `audio_of` names the video.
    """

    length_field: ClassVar[str | None] = "max_seconds"

    type: Literal["audio"]
    encoder: AudioEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    sample_rate: int = Field(16000, ge=1000, le=192000)
    """Samples per second after resampling."""
    max_seconds: float = Field(10.0, gt=0, le=3600)
    """Length in seconds: longer clips are cut, shorter ones padded with silence. 30 by default for an input that a
    generation task transcribes (`reads`)."""
    features: Literal["mel", "waveform"] = "mel"
    """Features for the encoder: a log-mel spectrogram, or the samples. A Hugging Face encoder uses its own."""
    n_mels: int = Field(40, ge=4, le=256)
    """Mel bands of the spectrogram, of 32 ms windows every 10 ms."""
    audio_of: str | None = None
    """A video input whose audio this is. `column` is then the video's, and requests need not contain it."""
    augment: list[AudioAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def fallback_input(self) -> str | None:
        return self.audio_of if self.part_of is None else self.part_of

    def validate_in_job(self, job: "Job") -> Problems:
        yield from super().validate_in_job(job)
        if self.part_of is not None and self.audio_of is not None:
            yield "part_of", "cannot be combined with audio_of; leave one of them out"
        if self.features == "waveform" and not self.encoder.reads_waveforms:
            yield "features", f"waveform is not supported by the {self.encoder.type} encoder; use mel"
        if not isinstance(self.encoder, HuggingFaceEncoderConfig):
            yield from self._validate_augment()
        if self.audio_of is not None:
            yield from self._validate_audio_of(job)

    def _validate_augment(self) -> Problems:
        for number, step in enumerate(self.augment):
            if step.audio_features not in (None, self.features):
                yield (
                    f"augment.{number}",
                    f"`{step.type}` applies to {step.audio_features}, and features are `{self.features}`; leave it out",
                )

    def _validate_audio_of(self, job: "Job") -> Problems:
        videos = {name: source for name, source in job.inputs.items() if isinstance(source, VideoInput)}
        if self.audio_of not in videos:
            known = f"one of: {', '.join(videos)}" if videos else "this job has none"
            yield "audio_of", f"no video input `{self.audio_of}`; {known}"
        elif videos[self.audio_of].max_items != self.max_items:
            wanted = videos[self.audio_of].max_items
            yield (
                "max_items",
                f"{self.max_items} is not {wanted}, which `{self.audio_of}` has; use {wanted}",
            )
