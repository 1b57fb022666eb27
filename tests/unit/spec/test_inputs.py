"""Properties of inputs that other modules rely on."""

import pytest

from rayfuse.spec.inputs import INPUTS, default_columns


@pytest.mark.parametrize("type_", INPUTS)
def test_the_length_field_is_a_field(type_: str) -> None:
    config = INPUTS[type_]
    assert config.length_field is None or config.length_field in config.model_fields
    assert config.pads_to_longest == (config.length_mask is not None)


def test_the_column_is_by_default_the_name() -> None:
    found = default_columns(
        {
            "note": {"type": "text"},
            "row": {"type": "tabular"},
            "clip": {"type": "video", "column": "file"},
            "sound": {"type": "audio", "audio_of": "clip"},
            "mine": {"type": "my_package:MyInput"},
        }
    )
    assert {name: block.get("column") for name, block in found.items()} == {
        "note": "note",
        "row": None,
        "clip": "file",
        "sound": "file",
        "mine": "mine",
    }
