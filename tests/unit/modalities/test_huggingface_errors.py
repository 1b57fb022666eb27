"""Reasons for real errors of transformers, huggingface_hub and safetensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from rayfuse.errors import DataError
from rayfuse.modalities.huggingface_errors import load_error_reason, load_errors
from rayfuse.modalities.pretrained import load_feature_extractor, load_image_processor, load_tokenizer


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_encoders.bert(tmp_path / "bert")


def load(model: str) -> Any:
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return AutoModel.from_pretrained(model, config=config, use_safetensors=True, trust_remote_code=False)


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def change_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.bias"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(load_errors()) as caught:
        load(str(tmp_path / "absent"))
    assert load_error_reason(caught.value) == "folder not found"


def test_model_that_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(load_errors()) as caught:
        load("rayfuse-test/absent")
    reason = "not in the local Hugging Face cache, and the hub is not reachable"
    assert load_error_reason(caught.value) == reason


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (
            lambda folder: change_config(folder, hidden_size="wide"),
            "config.json: Field 'hidden_size' expected int, got str (value: 'wide')",
        ),
        (lambda folder: change_config(folder, model_type="zork"), "transformers has no model type `zork`"),
        (
            lambda folder: change_config(
                folder, model_type="zork", auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"}
            ),
            "it requires custom code, which is never run",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "no file named model.safetensors; other formats, such as pytorch_model.bin, may contain code and are not "
            "loaded. If you trust the file, convert it with `AutoModel.from_pretrained(folder).save_pretrained(folder)`",
        ),
        (change_shape, "tensors in model.safetensors have other shapes than config.json defines"),
        (
            lambda folder: truncate(folder / "model.safetensors"),
            "model.safetensors is incomplete or corrupted",
        ),
        (
            lambda folder: change_config(folder, hidden_size=17),
            "ValueError: The hidden size (17) is not a multiple of the number of attention heads (2)",
        ),
    ],
)
def test_damaged_folders(damage: Callable[[Path], Any], reason: str, bert: Path) -> None:
    damage(bert)
    with pytest.raises(load_errors()) as caught:
        load(str(bert))
    assert load_error_reason(caught.value) == reason


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_tokenizer, "it has no vocabulary; save it there with `tokenizer.save_pretrained`"),
        (
            lambda folder: [path.unlink() for path in folder.iterdir()],
            "no tokenizer.json, which `tokenizer.save_pretrained` writes",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "one of its files is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "KeyError: 'added_tokens'"),
    ],
)
def test_damaged_tokenizers(damage: Callable[[Path], Any], reason: str, bert: Path) -> None:
    damage(bert)
    with pytest.raises(DataError) as caught:
        load_tokenizer(str(bert))
    assert str(caught.value) == f"{bert}: cannot load the tokenizer: {reason}"


@pytest.mark.parametrize(
    ("load_component", "damage", "reason"),
    [
        (
            load_image_processor,
            lambda file: file.unlink(),
            "image processor: no preprocessor_config.json, which `save_pretrained` of the image processor writes",
        ),
        (
            load_image_processor,
            lambda file: file.write_text("{"),
            "image processor: preprocessor_config.json is not valid JSON",
        ),
        (
            load_feature_extractor,
            lambda file: None,
            "feature extractor: transformers has no feature extractor for its type of model",
        ),
    ],
)
def test_damaged_processors(
    load_component: Callable[[str], Any], damage: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    folder = tiny_encoders.vit(tmp_path / "vit")
    damage(folder / "preprocessor_config.json")
    with pytest.raises(DataError) as caught:
        load_component(str(folder))
    assert str(caught.value) == f"{folder}: cannot load the {reason}"
