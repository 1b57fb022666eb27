"""A loaded voice."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_voice
from tiny_voice import SAMPLES_PER_PHONEME

from rayfuse.errors import DataError
from rayfuse.speech.voice import Voice


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return Voice(tiny_voice.make_voice(tmp_path_factory.mktemp("voice")))


def num_tones(phonemes: list[str]) -> int:
    """Return the numbers that the graph reads: one and a pad of each phoneme, and ^, _ and $."""
    return 2 * len(phonemes) + 3


def test_each_phoneme_is_read_with_a_pad_behind_it(voice: Voice) -> None:
    phonemes = voice.phonemes("Hi.")
    assert phonemes == ["h", "ˈ", "a", "ɪ", "."]
    samples = voice.synthesize(phonemes)
    assert samples.dtype == np.float32
    assert samples.shape == (num_tones(phonemes) * SAMPLES_PER_PHONEME,)
    blocks = samples.reshape(-1, SAMPLES_PER_PHONEME)
    silent = [place for place, block in enumerate(blocks) if not block.any()]
    assert silent == [1, 3, 5, 7, 9, 11]
    assert np.abs(samples).max() <= 1


def test_speed_divides_the_duration(voice: Voice) -> None:
    phonemes = voice.phonemes("one two three")
    normal = voice.synthesize(phonemes).size
    assert voice.synthesize(phonemes, speed=2.0).size == normal / 2
    assert voice.synthesize(phonemes, speed=0.25).size == normal * 4


def test_unknown_phonemes_are_left_out_and_logged_once(
    voice: Voice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = {
        symbol: ids for symbol, ids in tiny_voice.config()["phoneme_id_map"].items() if symbol not in "θɹ"
    }
    lacking = Voice(tiny_voice.make_voice(tmp_path, phoneme_id_map=table))
    with caplog.at_level(logging.WARNING):
        found = lacking.phonemes("three")
        assert found == [symbol for symbol in voice.phonemes("three") if symbol not in "θɹ"]
        assert lacking.phonemes("three") == found
    assert [record.getMessage() for record in caplog.records] == [
        "tiny does not know the phonemes ɹ θ, which are left out"
    ]


def test_phonemes_may_stand_for_others(tmp_path: Path) -> None:
    mapped = Voice(tiny_voice.make_voice(tmp_path, phoneme_map={"θ": ["t", "h"]}))
    assert mapped.phonemes("three")[:2] == ["t", "h"]


def test_texts_without_anything_to_speak(voice: Voice) -> None:
    for text in ("...", "👍", "Привет"):
        assert [voice.phonemes(sentence) for sentence in voice.sentences(text)] in ([[]], [])


def test_speakers(tmp_path: Path) -> None:
    two = Voice(tiny_voice.make_voice(tmp_path, num_speakers=2, speaker_id_map={"ann": 0, "ben": 1}))
    assert two.speakers == ("ann", "ben")
    phonemes = two.phonemes("yes")
    ann, ben = (two.synthesize(phonemes, speaker=name) for name in two.speakers)
    assert np.allclose(ben, ann / 2, atol=1e-6)
    assert np.array_equal(two.synthesize(phonemes), ann)
    numbered = Voice(tiny_voice.make_voice(tmp_path / "numbered", num_speakers=3))
    assert numbered.speakers == ("0", "1", "2")


def test_voices_that_read_characters(tmp_path: Path) -> None:
    letters = Voice(tiny_voice.make_voice(tmp_path, phoneme_type="text", language={"code": "nl_NL"}))
    assert letters.description.phonemizer == "characters"
    assert letters.phonemes("Één 1") == ["e", "e", "n", " "]


def test_a_voice_of_any_language_checks_itself(tmp_path: Path) -> None:
    table = {"_": [0], "^": [1], "$": [2], " ": [3], "ж": [4], "и": [5]}
    changes = {"phoneme_type": "text", "language": {"code": "uk_UA"}, "phoneme_id_map": table}
    Voice(tiny_voice.make_voice(tmp_path / "letters", **changes)).check()
    Voice(tiny_voice.make_voice(tmp_path / "english")).check()
    other = Voice(tiny_voice.make_voice(tmp_path / "other", phoneme_id_map=table))
    with pytest.raises(DataError, match="cannot speak 'One, 2, 3.': it knows none of its phonemes"):
        other.check()
