"""Reasons for real errors of transformers, huggingface_hub, safetensors and PEFT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from rayfuse.model.encoders.huggingface_errors import adapter_error_reason, load_error_reason, load_errors


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
            "no file named model.safetensors; other formats are not loaded",
        ),
        (change_shape, "tensors in model.safetensors have other shapes than config.json defines"),
        (
            lambda folder: truncate(folder / "model.safetensors"),
            "model.safetensors is incomplete or corrupted",
        ),
        (
            lambda folder: change_config(folder, hidden_size=17),
            "The hidden size (17) is not a multiple of the number of attention heads (2)",
        ),
    ],
)
def test_damaged_folders(damage: Callable[[Path], Any], reason: str, bert: Path) -> None:
    damage(bert)
    with pytest.raises(load_errors()) as caught:
        load(str(bert))
    assert load_error_reason(caught.value) == reason


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoraConfig(target_modules=["q_proj"]), ("target_modules", "no such modules")),
        (OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4), ("target_modules", "no such modules")),
        (
            LoraConfig(target_modules=["LayerNorm"]),
            ("target_modules", "modules of a type that PEFT cannot adapt"),
        ),
        (
            LoraConfig(r=3, target_modules=["query"], init_lora_weights="orthogonal"),
            ("", "Orthogonal initialization requires the LoRA rank to be even, got 3 instead."),
        ),
    ],
)
def test_adapters_that_do_not_fit(config: Any, expected: tuple[str, str], bert: Path) -> None:
    with pytest.raises(ValueError) as caught:
        get_peft_model(load(str(bert)), config)
    assert adapter_error_reason(caught.value) == expected
