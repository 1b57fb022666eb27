"""A VITS voice in ONNX (Kim et al., 2021), as Piper exports it: numbers of phonemes in, samples out."""

import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayfuse.errors import DataError, ResourceError
from rayfuse.speech.phonemizers import build_phonemizer
from rayfuse.speech.piper_config import BEGIN, END, PAD, read_config
from rayfuse.speech.sentences import split_sentences
from rayfuse.speech.voice_folder import CONFIG_FILE, GRAPH_FILE, load_description

Samples = npt.NDArray[np.float32]

_INPUTS = {"input", "input_lengths", "scales"}
_SPEAKER_INPUT = "sid"
_MAX_PHONEMES = 2000
"""Phonemes of a sentence; the graph's memory grows with their square."""

_TEST_LETTERS = 8

_log = logging.getLogger(__name__)


class Voice:
    """A loaded voice. Its methods are safe for threads."""

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        """Load a model folder; `num_threads` compute one sentence.

        Raises DataError if it is damaged, ResourceError if a package is missing.
        """
        self.description = load_description(folder)
        self._config = read_config(folder / CONFIG_FILE)
        self._phonemizer = build_phonemizer(self.description.phonemizer, self._config)
        self._session = open_graph(folder / GRAPH_FILE, num_threads)
        self._is_multi_speaker = _SPEAKER_INPUT in {one.name for one in self._session.get_inputs()}
        self._unknown: set[str] = set()

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.description.sample_rate

    @property
    def speakers(self) -> tuple[str, ...]:
        """Names of the speakers; the name of the voice for a single one."""
        return tuple(self.description.speakers) or (self.description.name,)

    @property
    def test_text(self) -> str:
        """A short text in the language of the voice, which uses each part of its phonemizer."""
        if self.description.phonemizer == "characters":
            letters = [symbol for symbol in self._config.phoneme_id_map if symbol.isalpha()]
            return "".join(letters[:_TEST_LETTERS])
        return "One, 2, 3." if self.description.phonemizer == "dictionary" else "1, 2, 3."

    def check(self) -> None:
        """Speak `test_text`. Raises DataError if the voice knows none of its phonemes, or computes NaN."""
        spoken = [phonemes for one in self.sentences(self.test_text) if (phonemes := self.phonemes(one))]
        if not spoken or not all(self.synthesize(phonemes).size for phonemes in spoken):
            raise DataError(
                f"{self.description.name}: the voice cannot speak {self.test_text!r}: it knows none of its phonemes; check "
                "that the configuration belongs to the voice"
            )

    def sentences(self, text: str) -> list[str]:
        """Return the parts of a text that `synthesize` takes one after the other, with all that is spoken as words."""
        normalized = self._phonemizer.normalize(unicodedata.normalize("NFC", text))
        return split_sentences(normalized)

    def phonemes(self, sentence: str) -> list[str]:
        """Return the symbols of a sentence that the voice knows; none if nothing in it can be spoken.

        Symbols that it does not know are left out, and logged once.
        """
        symbols: list[str] = []
        for symbol in unicodedata.normalize("NFD", self._phonemizer.phonemize(sentence)):
            symbols += self._config.phoneme_map.get(symbol, [symbol])
        known = [symbol for symbol in symbols if symbol in self._config.phoneme_id_map]
        unknown = set(symbols) - set(known) - self._unknown
        if unknown:
            self._unknown |= unknown
            _log.warning(
                "%s does not know the phonemes %s, which are left out",
                self.description.name,
                " ".join(sorted(unknown)),
            )
        return known if any(symbol.isalpha() for symbol in known) else []

    def synthesize(self, phonemes: list[str], *, speed: float = 1.0, speaker: str | None = None) -> Samples:
        """Return the samples of the phonemes of a sentence, float32 [samples] from -1 to 1.

        speed: the rate of speech, 1.0 as the voice has learned it; speaker: one of `speakers`, by default the first.
        Raises DataError if they are NaN or infinite.
        """
        parts = [self._run(part, speed, speaker) for part in _parts(phonemes)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, phonemes: list[str], speed: float, speaker: str | None) -> Samples:
        numbers, use = self._numbers(phonemes), self._config.inference
        feeds: dict[str, Any] = {
            "input": np.array([numbers], dtype=np.int64),
            "input_lengths": np.array([len(numbers)], dtype=np.int64),
            "scales": np.array([use.noise_scale, use.length_scale / speed, use.noise_w], dtype=np.float32),
        }
        if self._is_multi_speaker:
            chosen = self._config.speakers.get(speaker or self.speakers[0], 0)
            feeds[_SPEAKER_INPUT] = np.array([chosen], dtype=np.int64)
        samples = self._session.run(None, feeds)[0].ravel()
        if not np.isfinite(samples).all():
            raise DataError(
                f"{self.description.name} computes samples that are NaN or infinite; its weights are invalid"
            )
        return np.clip(samples, -1.0, 1.0).astype(np.float32)

    def _numbers(self, phonemes: list[str]) -> list[int]:
        table = self._config.phoneme_id_map
        pad = table[PAD]
        body = [number for phoneme in phonemes for number in (*table[phoneme], *pad)]
        return [*table[BEGIN], *pad, *body, *table[END]]


def open_graph(path: Path, num_threads: int = 1) -> Any:
    """Open the graph of a voice with onnxruntime.

    Raises DataError if it is damaged or of another kind, ResourceError if onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ResourceError("speech needs onnxruntime: pip install 'rayfuse[speech]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime has its own errors
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable by onnxruntime: {reason}; copy the file again") from None
    inputs = {one.name for one in session.get_inputs()}
    if inputs not in (_INPUTS, {*_INPUTS, _SPEAKER_INPUT}):
        raise DataError(
            f"{path}: not the graph of a Piper voice: it reads {', '.join(sorted(inputs))} instead of "
            f"{', '.join(sorted(_INPUTS))}; pass a voice of Piper (VITS)"
        )
    return session


def _parts(phonemes: list[str]) -> Iterator[list[str]]:
    """Split phonemes that are too many for one run of the graph."""
    for start in range(0, len(phonemes), _MAX_PHONEMES):
        yield phonemes[start : start + _MAX_PHONEMES]
