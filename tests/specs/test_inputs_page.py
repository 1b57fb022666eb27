"""Test the spec and the encoder of docs/inputs.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from rayfuse.modalities import build_modality
from rayfuse.model.encoders import Encoder
from rayfuse.spec.base import Key
from rayfuse.spec.inputs import INPUTS, Input, TimeseriesInput, default_columns


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "inputs.md").read_text()


@pytest.fixture(scope="module")
def inputs(page: str) -> dict[str, Any]:
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    content = yaml.safe_load(block)["inputs"]
    return TypeAdapter(dict[Key, Input]).validate_python(default_columns(content))


def test_the_documented_spec_has_every_input_type(inputs: dict[str, Any], page: str) -> None:
    assert {options.type for options in inputs.values()} == set(INPUTS)
    assert inputs["audio"].column == "clip"
    for kind in INPUTS:
        assert f"\n## {kind}\n" in page


def test_the_documented_encoder_runs(page: str, inputs: dict[str, Any]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    options: TimeseriesInput = inputs["sensor"].model_copy(update={"center": [0.0] * 3, "scale": [1.0] * 3})
    modality = build_modality(options)
    batch = modality.collate(
        [modality.dummy_features(), modality.process(modality.decode([[1, 2], [3, None], [5, 6]]))]
    )
    encoder = names["ChannelMeans"]({}, options)
    assert isinstance(encoder, Encoder)
    tokens, mask = encoder(**{name: torch.from_numpy(values) for name, values in batch.items()})
    assert tokens.shape == (2, 1, 3)
    assert mask.all()
