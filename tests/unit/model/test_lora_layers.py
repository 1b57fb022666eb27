"""LoRA in the last layers only: adapters there, and nowhere else."""

from pathlib import Path

import pytest

from rayfuse.errors import SpecError
from rayfuse.model.encoders.adapters import adapted_modules, with_adapters
from rayfuse.spec.encoders import Lora


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
def test_adapters_are_where_the_spec_says(layers: int | None, expected: set[int]) -> None:
    assert adapted_layers(with_adapters(tiny_bert(), Lora(layers=layers))) == expected


def test_targets_and_layers_go_together() -> None:
    names = adapted_modules(tiny_bert(), Lora(targets=["query", "value"], layers=1))
    assert sorted(Path(name).suffix for name in names) == [".query", ".value"]


def test_a_model_without_layers_is_refused() -> None:
    from torch import nn

    with pytest.raises(SpecError, match="no list of layers"):
        adapted_modules(nn.Sequential(nn.Linear(2, 2)), Lora(layers=1))
