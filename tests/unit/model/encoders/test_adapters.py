"""Adapters restricted to the last layers."""

from pathlib import Path

import pytest

from rayfuse.errors import SpecError
from rayfuse.model.encoders.adapters import apply_adapters, resolve_target_modules
from rayfuse.spec.encoders import LoraAdapterConfig


def tiny_bert(layers: int = 3):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32
    )
    return BertModel(config, add_pooling_layer=False)


def adapted_layers(model) -> set[int]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in names)
    return {int(name.split(".layer.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize(("layers", "expected"), [(None, {0, 1, 2}), (1, {2}), (2, {1, 2}), (9, {0, 1, 2})])
def test_adapters_of_the_last_n_layers(layers: int | None, expected: set[int]) -> None:
    assert adapted_layers(apply_adapters(tiny_bert(), LoraAdapterConfig(last_n_layers=layers))) == expected


def test_targets_in_the_last_n_layers() -> None:
    names = resolve_target_modules(
        tiny_bert(), LoraAdapterConfig(target_modules=["query", "value"], last_n_layers=1)
    )
    assert sorted(Path(name).suffix for name in names) == [".query", ".value"]


def test_model_without_layers_is_rejected() -> None:
    from torch import nn

    with pytest.raises(SpecError, match="no list of layers"):
        resolve_target_modules(nn.Sequential(nn.Linear(2, 2)), LoraAdapterConfig(last_n_layers=1))
