"""Voices in the form of Piper whose graph maps each phoneme to a short tone."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rayfuse.speech.voice_folder import find_piper_voice, save_voice

SAMPLE_RATE = 16000
SAMPLES_PER_PHONEME = 320
NUM_IDS = 256
SYMBOLS = [*"_^$ ", *".,;:!?'", *string.ascii_lowercase, *"ɑæɐʌəɚɛɜɪᵻɔʊɡɹɾʃʒθðŋʔː\u0329ˈˌ"]

_OPSET = 17


def write_graph(path: Path, num_speakers: int = 1) -> Path:
    """Write a graph with the inputs of a Piper voice; a speaker's number divides the loudness."""
    time = np.arange(SAMPLES_PER_PHONEME) / SAMPLE_RATE
    tones = np.stack([0.5 * np.sin(2 * np.pi * (100 + 10 * number) * time) for number in range(NUM_IDS)])
    tones[0] = 0  # the padding is silent
    constants = {
        "tones": tones.astype(np.float32),
        "flat": np.array([1, 1, 1, -1], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
        "ones": np.ones(3, dtype=np.float32),
        "roi": np.array([], dtype=np.float32),
        "unit": np.array([1], dtype=np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["tones", "input"], ["by_phoneme"]),
        helper.make_node("Reshape", ["by_phoneme", "flat"], ["joined"]),
        helper.make_node("Slice", ["scales", "one", "two"], ["length_scale"]),
        helper.make_node("Concat", ["ones", "length_scale"], ["factors"], axis=0),
        helper.make_node("Resize", ["joined", "roi", "factors"], ["stretched"], mode="nearest"),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    if num_speakers > 1:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, [1]))
        nodes += [
            helper.make_node("Cast", ["sid"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["number", "unit"], ["divisor"]),
            helper.make_node("Div", ["stretched", "divisor"], ["output"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["stretched"], ["output"]))
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "voice", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def config(**changes: Any) -> dict[str, Any]:
    """Return the configuration of an English voice, with changes."""
    return {
        "audio": {"sample_rate": SAMPLE_RATE, "quality": "low"},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
        "phoneme_type": "espeak",
        "phoneme_map": {},
        "phoneme_id_map": {symbol: [number] for number, symbol in enumerate(SYMBOLS)},
        "num_speakers": 1,
        "speaker_id_map": {},
        "language": {"code": "en_US"},
        **changes,
    }


def write_piper_voice(folder: Path, **changes: Any) -> Path:
    """Write a voice as Piper distributes it, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config(**changes)
    write_graph(folder / "tiny.onnx", content["num_speakers"])
    (folder / "tiny.onnx.json").write_text(json.dumps(content))
    return folder


def make_voice(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """Write the model folder of a voice, and return it."""
    piper = write_piper_voice(folder / "piper", **changes)
    save_voice(find_piper_voice(piper), folder / "model", name, "CC0-1.0", None)
    return folder / "model"
