"""Reasons for real errors of PEFT."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
from peft import LoraConfig, OFTConfig, get_peft_model
from transformers import AutoModel

from rayfuse.model.encoders.peft_errors import adapter_error_reason


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
def test_adapters_that_do_not_fit(config: Any, expected: tuple[str, str], tmp_path: Path) -> None:
    bert = tiny_encoders.bert(tmp_path / "bert")
    with pytest.raises(ValueError) as caught:
        get_peft_model(AutoModel.from_pretrained(bert), config)
    assert adapter_error_reason(caught.value) == expected
