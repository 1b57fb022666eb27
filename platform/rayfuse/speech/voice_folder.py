"""Model folders of voices: files of the format, of the graph and of Piper's configuration.

Like those of other models they are marked by `rayfuse.json`, which states the format, the kind, and what users must know.
The graph is `voice.onnx`, the configuration `voice.onnx.json`.
"""

import json
import re
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rayfuse.errors import DataError
from rayfuse.speech.phonemizers import PhonemizerName, choose_phonemizer
from rayfuse.speech.piper_config import PiperConfig, read_config

GRAPH_FILE, CONFIG_FILE = "voice.onnx", "voice.onnx.json"

_DESCRIPTION_FILE = "rayfuse.json"
_FORMAT_VERSION = 1
_KIND = "voice"
_CARD_FILE = "MODEL_CARD"
_CARD_LICENSE = re.compile(r"^[*\s]*license\s*:\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)


class VoiceDescription(BaseModel):
    """Facts about a voice, stored in its model folder."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Name of the registered model."""
    license: str
    """License of the voice, such as `CC0-1.0`."""
    language: str
    """BCP 47 tag, such as `en-US`."""
    sample_rate: int
    """Samples per second."""
    speakers: list[str]
    """Names of the speakers; empty for a single one."""
    phonemizer: PhonemizerName
    """Way from texts to phonemes."""


class PiperVoice(BaseModel):
    """The files of a voice as Piper distributes it."""

    graph: Path
    config_file: Path
    config: PiperConfig
    license: str | None
    """License that its MODEL_CARD states."""


def find_piper_voice(folder: Path) -> PiperVoice:
    """Find the voice in a folder: `VOICE.onnx` and `VOICE.onnx.json` or `VOICE.json`.

    Raises DataError if there is none, or several, or the configuration is of another kind.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; pass the folder of a Piper voice (VOICE.onnx, VOICE.onnx.json)"
        )
    graphs = sorted(folder.glob("*.onnx"))
    if len(graphs) != 1:
        found = ", ".join(path.name for path in graphs) or "none"
        raise DataError(
            f"{folder}: must have one .onnx file, has {found}; put each voice in a separate folder"
        )
    candidates = [Path(f"{graphs[0]}.json"), graphs[0].with_suffix(".json")]
    config_file = next((path for path in candidates if path.is_file()), None)
    if config_file is None:
        raise DataError(
            f"{folder}: no {candidates[0].name} next to {graphs[0].name}; download the configuration of the voice, too"
        )
    card = folder / _CARD_FILE
    match = (
        _CARD_LICENSE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    )
    return PiperVoice(
        graph=graphs[0],
        config_file=config_file,
        config=read_config(config_file),
        license=match[1] if match else None,
    )


def save_voice(
    voice: PiperVoice, folder: Path, name: str, license: str, phonemizer: str | None
) -> VoiceDescription:
    """Write the model folder of a voice, and return its description. Raises SpecError for a wrong phonemizer."""
    config = voice.config
    description = VoiceDescription(
        name=name,
        license=license,
        language=config.language_code,
        sample_rate=config.audio.sample_rate,
        speakers=list(config.speakers),
        phonemizer=choose_phonemizer(config, phonemizer),
    )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(voice.graph, folder / GRAPH_FILE)
    shutil.copyfile(voice.config_file, folder / CONFIG_FILE)
    content = {"format": _FORMAT_VERSION, "kind": _KIND, "voice": description.model_dump()}
    (folder / _DESCRIPTION_FILE).write_text(json.dumps(content, indent=1))
    return description


def is_voice(folder: Path) -> bool:
    """Return whether a model folder is that of a voice."""
    try:
        content = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == _KIND


def load_description(folder: Path) -> VoiceDescription:
    """Load the description of a voice. Raises DataError if it is damaged or in another format."""
    path = folder / _DESCRIPTION_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != _FORMAT_VERSION:
        raise DataError(
            f"{folder}: model format {content.get('format')} is not supported; this version reads {_FORMAT_VERSION}"
        )
    try:
        return VoiceDescription.model_validate(content.get("voice"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; register the voice again") from None
