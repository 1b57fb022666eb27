"""The configuration of a Piper voice, `VOICE.onnx.json`.

Its form is that of https://github.com/OHF-Voice/piper1-gpl/blob/main/docs/TRAINING.md; only facts are read from it.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from rayfuse.errors import DataError

BEGIN, END, PAD = "^", "$", "_"
"""Symbols around the phonemes of a sentence and between them."""


class _Audio(BaseModel):
    sample_rate: int = Field(ge=4000, le=192_000)


class _Espeak(BaseModel):
    voice: str = Field(min_length=1)


class _Language(BaseModel):
    code: str = ""


class _Inference(BaseModel):
    noise_scale: float = 0.667
    length_scale: float = Field(1.0, gt=0)
    noise_w: float = 0.8


class PiperConfig(BaseModel):
    """Configuration of a voice."""

    audio: _Audio
    espeak: _Espeak | None = None
    """Voice of eSpeak whose phonemes the voice has learned."""
    language: _Language = _Language()
    inference: _Inference = _Inference()
    """Scales of the noise and of the durations."""
    phoneme_type: Literal["espeak", "text"] = "espeak"
    """`text`: the voice reads characters."""
    phoneme_map: dict[str, list[str]] = {}
    """Phonemes to read instead of others."""
    phoneme_id_map: dict[str, list[int]] = Field(min_length=4)
    """Numbers of each symbol."""
    num_speakers: int = Field(1, ge=1)
    speaker_id_map: dict[str, int] = {}
    """Numbers of the speakers by name."""

    @model_validator(mode="after")
    def _check(self) -> "PiperConfig":
        missing = [symbol for symbol in (BEGIN, END, PAD) if not self.phoneme_id_map.get(symbol)]
        if missing:
            raise ValueError(f"phoneme_id_map lacks the symbols {', '.join(missing)}")
        if self.phoneme_type == "espeak" and self.espeak is None:
            raise ValueError("espeak.voice is missing")
        if any(not 0 <= number < self.num_speakers for number in self.speaker_id_map.values()):
            raise ValueError(f"speaker_id_map has numbers beyond num_speakers ({self.num_speakers})")
        return self

    @property
    def language_code(self) -> str:
        """BCP 47 tag of the language, such as `en-US`."""
        return (self.language.code or (self.espeak.voice if self.espeak else "")).replace("_", "-")

    @property
    def speakers(self) -> dict[str, int]:
        """Numbers of the speakers by name: those of the configuration, else their numbers; none for a single speaker."""
        if self.num_speakers == 1:
            return {}
        return self.speaker_id_map or {str(number): number for number in range(self.num_speakers)}


def read_config(path: Path) -> PiperConfig:
    """Read the configuration of a voice. Raises DataError if it is not that of a Piper voice."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not readable as JSON: {error}; copy the configuration of the voice again"
        ) from None
    try:
        return PiperConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise DataError(
            f"{path}: not the configuration of a Piper voice: {reason}; pass the VOICE.onnx.json that belongs to the voice"
        ) from None
