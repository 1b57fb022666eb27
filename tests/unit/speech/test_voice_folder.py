"""Voices as Piper distributes them, and their model folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_voice
from onnx import TensorProto, helper

from rayfuse.errors import DataError, SpecError
from rayfuse.model.model_io import load_job
from rayfuse.registry.download import fetch
from rayfuse.speech.phonemizers import choose_phonemizer
from rayfuse.speech.piper_config import PiperConfig
from rayfuse.speech.voice import open_graph
from rayfuse.speech.voice_folder import find_piper_voice, is_voice, load_description, save_voice


def test_a_model_folder_has_the_files_and_the_facts(tmp_path: Path) -> None:
    piper = tiny_voice.write_piper_voice(tmp_path / "piper")
    (piper / "MODEL_CARD").write_text("# Model card\n\n* Speakers: 1\n\n## Dataset\n* License: CC0\n")
    found = find_piper_voice(piper)
    assert found.license == "CC0"
    description = save_voice(found, tmp_path / "model", "joe", "CC0", None)
    assert load_description(tmp_path / "model") == description
    assert description.model_dump() == {
        "name": "joe",
        "license": "CC0",
        "language": "en-US",
        "sample_rate": 16000,
        "speakers": [],
        "phonemizer": "dictionary",
    }
    assert is_voice(tmp_path / "model")
    assert not is_voice(piper)
    assert fetch(str(tmp_path / "model")).folder == tmp_path / "model"
    with pytest.raises(
        DataError, match="a voice, which makes no predictions; serve it with `rayfuse serve up`"
    ):
        load_job(tmp_path / "model")


def test_configurations_may_have_the_name_of_the_graph_alone(tmp_path: Path) -> None:
    piper = tiny_voice.write_piper_voice(tmp_path)
    (piper / "tiny.onnx.json").rename(piper / "tiny.json")
    assert find_piper_voice(piper).config.language_code == "en-US"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"audio": {}}, "audio.sample_rate: Field required"),
        ({"audio": {"sample_rate": "fast"}}, "audio.sample_rate"),
        (
            {"phoneme_id_map": {"a": [1], "b": [2], "c": [3], "d": [4]}},
            "phoneme_id_map lacks the symbols ^, $, _",
        ),
        ({"phoneme_id_map": None}, "phoneme_id_map"),
        ({"espeak": None}, "espeak.voice is missing"),
        ({"phoneme_type": "pinyin"}, "phoneme_type: Input should be 'espeak' or 'text'"),
        ({"num_speakers": 2, "speaker_id_map": {"a": 0, "b": 2}}, "numbers beyond num_speakers"),
        ({"inference": {"length_scale": 0}}, "inference.length_scale"),
    ],
)
def test_configurations_of_another_kind(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    piper = tiny_voice.write_piper_voice(tmp_path)
    (piper / "tiny.onnx.json").write_text(json.dumps({**tiny_voice.config(), **change}))
    with pytest.raises(DataError, match="not the configuration of a Piper voice") as caught:
        find_piper_voice(piper)
    assert problem in str(caught.value)


def test_folders_without_a_voice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_piper_voice(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"must have one \.onnx file, has none"):
        find_piper_voice(tmp_path)
    piper = tiny_voice.write_piper_voice(tmp_path / "piper")
    (piper / "tiny.onnx.json").write_text("[1")
    with pytest.raises(DataError, match="not readable as JSON"):
        find_piper_voice(piper)
    (piper / "tiny.onnx.json").write_text("[1]")
    with pytest.raises(DataError, match="not the configuration of a Piper voice"):
        find_piper_voice(piper)
    (piper / "tiny.onnx.json").unlink()
    with pytest.raises(DataError, match=r"no tiny\.onnx\.json next to tiny\.onnx"):
        find_piper_voice(piper)
    shutil.copy(piper / "tiny.onnx", piper / "other.onnx")
    with pytest.raises(DataError, match=r"has other\.onnx, tiny\.onnx"):
        find_piper_voice(piper)


def test_graphs_of_another_kind(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(DataError, match="it reads x instead of input, input_lengths, scales"):
        open_graph(tmp_path / "other.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not readable by onnxruntime"):
        open_graph(tmp_path / "broken.onnx")


def test_damaged_model_folders(tmp_path: Path) -> None:
    folder = tiny_voice.make_voice(tmp_path)
    content = json.loads((folder / "rayfuse.json").read_text())
    (folder / "rayfuse.json").write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(DataError, match="model format 9 is not supported"):
        load_description(folder)
    (folder / "rayfuse.json").write_text(json.dumps({**content, "voice": {"name": "x"}}))
    with pytest.raises(DataError, match="license: Field required"):
        load_description(folder)


def test_the_phonemizer_of_a_voice() -> None:
    english = PiperConfig.model_validate(tiny_voice.config())
    german = PiperConfig.model_validate(tiny_voice.config(language={"code": "de_DE"}, espeak={"voice": "de"}))
    letters = PiperConfig.model_validate(tiny_voice.config(phoneme_type="text", language={"code": "uk_UA"}))
    assert choose_phonemizer(english) == "dictionary"
    assert choose_phonemizer(english, "espeak") == choose_phonemizer(german, "espeak") == "espeak"
    assert choose_phonemizer(letters) == "characters"
    with pytest.raises(
        SpecError, match=r"language de-DE: .* pass --phonemizer espeak, which needs eSpeak NG \(GPL-3\)"
    ):
        choose_phonemizer(german)
    with pytest.raises(SpecError, match=r"phonemizer dictionary: not for this voice \(de-DE\); use espeak"):
        choose_phonemizer(german, "dictionary")
    with pytest.raises(SpecError, match="use characters"):
        choose_phonemizer(letters, "espeak")
