"""Small convolutional encoders."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from rayfuse.modalities import build_modality
from rayfuse.model.encoders import build_encoder
from rayfuse.spec.inputs import Input

SETTINGS: dict[str, dict[str, Any]] = {
    "image": {"size": 8},
    "audio": {"sample_rate": 8000, "max_seconds": 0.1},
    "text": {"max_tokens": 16},
}


def options(kind: str, width: int = 4, **settings: Any) -> Any:
    content = {
        "type": kind,
        "column": kind,
        "encoder": {"type": "conv", "hidden_size": width},
        **SETTINGS[kind],
        **settings,
    }
    return TypeAdapter(Input).validate_python(content)


@pytest.mark.parametrize("width", [4, 12, 32])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_one_token_of_four_times_hidden_size(kind: str, width: int) -> None:
    source = options(kind, width)
    encoder = build_encoder(source).eval()
    modality = build_modality(source)
    features = modality.collate([modality.dummy_features(), modality.dummy_features()])
    tokens, mask = encoder(**{name: torch.from_numpy(values) for name, values in features.items()})
    assert tokens.shape == (2, 1, 4 * width) == (2, 1, encoder.width)
    assert mask.tolist() == [[True], [True]]
    assert torch.isfinite(tokens).all()


def test_hidden_size_must_be_divisible_for_group_norm() -> None:
    with pytest.raises(ValidationError, match="multiple of 4"):
        options("image", width=6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("image", {"size": 9}),
        ("image", {"size": 224}),
        ("audio", {"max_seconds": 1e-6}),
        ("audio", {"max_seconds": 0.01}),
        ("audio", {"sample_rate": 44100, "max_seconds": 0.5}),
    ],
)
def test_odd_sizes(kind: str, settings: dict[str, Any]) -> None:
    source = options(kind, **settings)
    features = {
        name: torch.from_numpy(values)[None]
        for name, values in build_modality(source).dummy_features().items()
    }
    assert torch.isfinite(build_encoder(source)(**features)[0]).all()


def test_text_padding_has_no_effect() -> None:
    encoder = build_encoder(options("text")).eval()
    ids = torch.tensor([[5, 6, 7]])
    padded = torch.nn.functional.pad(ids, (0, 6))
    alone, _ = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    padded_batch, _ = encoder(input_ids=padded, attention_mask=(padded > 0).long())
    torch.testing.assert_close(alone, padded_batch)
