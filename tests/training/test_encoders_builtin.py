"""Built-in encoders of every input type: shapes, padding, and independence of rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch
from pydantic import TypeAdapter
from torch import nn
from variants import train_and_reload

from rayfuse.errors import SpecError
from rayfuse.modalities.text import PRETRAINED_PREFIX
from rayfuse.model.encoders import Encoder, build_nested_encoder
from rayfuse.model.fused import trainable_parameters
from rayfuse.spec import encoders as spec
from rayfuse.spec.encoders import ENCODERS
from rayfuse.spec.inputs import TextInput

UNIONS: dict[str, Any] = {
    "image": spec.ImageEncoderConfig,
    "audio": spec.AudioEncoderConfig,
    "text": spec.TextEncoderConfig,
    "video": spec.VideoEncoderConfig,
    "timeseries": spec.TimeseriesEncoderConfig,
    "tabular": spec.TabularEncoderConfig,
    "item_sequence": spec.ItemSequenceEncoderConfig,
}
SOURCES = {
    "image": SimpleNamespace(type="image", size=20),
    "audio": SimpleNamespace(type="audio", n_mels=40),
    "text": SimpleNamespace(type="text"),
    "video": SimpleNamespace(type="video", size=12),
    "timeseries": SimpleNamespace(type="timeseries", num_channels=3),
    "tabular": SimpleNamespace(
        type="tabular", numeric_columns=["a", "b"], category_vocabularies={"c": ["x", "y"], "d": ["z"]}
    ),
    "item_sequence": SimpleNamespace(type="item_sequence", vocabulary=["x", "y", "z"]),
}
SMALL: dict[str, dict[str, Any]] = {
    "conv": {"hidden_size": 8},
    "resnet": {"hidden_size": 4, "depths": [1, 2]},
    "transformer": {"hidden_size": 8, "heads": 2, "layers": 2},
    "gru": {"hidden_size": 8},
    "lstm": {"hidden_size": 8, "layers": 2, "bidirectional": False},
    "mlp": {"hidden_size": 8, "layers": 2, "embedding": 3},
    "embedding": {"hidden_size": 8},
    "ngrams": {"hidden_size": 8, "vocabulary": ["a", "b", "a b"], "idf": [1.0, 2.0, 3.0]},
    "frames": {"encoder": {"type": "conv", "hidden_size": 4}},
    "huggingface": {},
}
BUILT_IN = [
    (kind, name)
    for kind, family in ENCODERS.items()
    for name in family
    if name not in ("huggingface", "prompt") and (kind, name) != ("audio", "conv")
]
OF_STEPS = [
    key
    for key in BUILT_IN
    if key[0] in ("text", "timeseries", "item_sequence", "video") and key[1] != "ngrams"
]


def build(kind: str, name: str, source: Any = None, **options: Any) -> Encoder:
    torch.manual_seed(0)
    block = TypeAdapter(UNIONS[kind]).validate_python({"type": name, **SMALL[name], **options})
    return build_nested_encoder(kind, block, source or SOURCES[kind]).eval()


def features(kind: str, name: str = "", rows: int = 3, steps: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(rows, steps, dtype=torch.int64)
    if kind == "image":
        return {"pixel_values": torch.rand(rows, 3, 20, 20)}
    if kind == "audio":
        return {"mel": torch.randn(rows, 40, 30)}
    if name == "ngrams":
        return {"input_ids": torch.randint(0, 4, (rows, steps)), "weights": torch.rand(rows, steps)}
    if kind == "text":
        return {"input_ids": torch.randint(1, 257, (rows, steps)), "attention_mask": mask}
    if kind == "video":
        times = torch.arange(steps).repeat(rows, 1) / 2
        return {"frames": torch.rand(rows, steps, 3, 12, 12), "frame_mask": mask, "frame_times": times}
    if kind == "timeseries":
        values, observed = torch.randn(rows, 3, steps), torch.rand(rows, 3, steps).round()
        return {"values": values * observed, "observed": observed, "step_mask": mask}
    if kind == "tabular":
        codes = torch.stack([torch.randint(0, 4, (rows,)), torch.randint(0, 3, (rows,))], dim=1)
        return {"numbers": torch.randn(rows, 2), "missing": torch.zeros(rows, 2), "categories": codes}
    return {
        "items": torch.randint(1, 5, (rows, steps)),
        "ages": torch.rand(rows, steps) * 9,
        "item_mask": mask,
    }


def part(found: dict[str, torch.Tensor], rows: slice, steps: int | None = None) -> dict[str, torch.Tensor]:
    """Return a slice of rows and steps: the last dimension of time series, the second of all others."""
    if steps is None:
        return {name: values[rows] for name, values in found.items()}
    last = ("values", "observed")
    return {n: v[rows, :, :steps] if n in last else v[rows, :steps] for n, v in found.items()}


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_shapes_gradients_and_independence_of_rows(kind: str, name: str) -> None:
    encoder, found = build(kind, name), features(kind, name)
    tokens, mask = encoder(**found)
    assert tokens.shape == (3, 1, encoder.width)
    assert mask.shape == (3, 1)
    assert mask.all()
    alone, _ = encoder(**part(found, slice(1, 2)))
    torch.testing.assert_close(alone, tokens[1:2], rtol=1e-4, atol=1e-5)
    (encoder.train()(**found)[0] ** 2).sum().backward()
    assert not [n for n, parameter in encoder.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_state_dict_reloads(kind: str, name: str) -> None:
    encoder, found = build(kind, name), features(kind, name)
    torch.manual_seed(9)
    other = build(kind, name)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other(**found)[0], encoder(**found)[0], rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["mean", "none"])
@pytest.mark.parametrize(("kind", "name"), [key for key in OF_STEPS if key != ("text", "conv")])
def test_padding_has_no_effect(kind: str, name: str, pool: str) -> None:
    """The first row has four steps; later values must have no effect."""
    encoder, found = build(kind, name, pool=pool), features(kind)
    mask_name = next(key for key in found if key.endswith("mask"))
    found[mask_name][0, 4:] = 0
    together, mask = encoder(**found)
    alone, alone_mask = encoder(**part(found, slice(0, 1), 4))
    torch.testing.assert_close(together[0][mask[0]], alone[0][alone_mask[0]], rtol=1e-4, atol=1e-5)
    if pool == "none":
        assert mask.sum(1).tolist() == [4, 7, 7]
    found[mask_name][0] = 0
    nothing, mask = encoder(**found)
    assert torch.isfinite(nothing).all()
    assert not mask[0].any()


@pytest.mark.parametrize("pool", ["first", "last", "max", "attention"])
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_other_pools(name: str, pool: str) -> None:
    encoder, found = build("text", name, pool=pool), features("text")
    found["attention_mask"][0, 4:] = 0
    pooled, _ = encoder(**found)
    alone, _ = encoder(**part(found, slice(0, 1), 4))
    torch.testing.assert_close(pooled[:1], alone, rtol=1e-4, atol=1e-5)
    tokens, _ = build("text", name, pool="none")(**found)
    if pool == "last":
        torch.testing.assert_close(pooled[:, 0], torch.stack([tokens[0, 3], tokens[1, 6], tokens[2, 6]]))
    if pool == "max":
        torch.testing.assert_close(pooled[0, 0], tokens[0, :4].amax(0))
    if pool == "first":
        torch.testing.assert_close(pooled[:, 0], tokens[:, 0])


def test_order_and_missing_values_matter() -> None:
    for name in ("conv", "gru", "lstm", "transformer"):
        encoder, found = build("timeseries", name), features("timeseries")
        turned = found | {key: found[key].flip(2) for key in ("values", "observed")}
        assert not torch.allclose(encoder(**turned)[0], encoder(**found)[0], atol=1e-4), name
        unseen = found | {"observed": torch.zeros_like(found["observed"])}
        assert not torch.allclose(encoder(**unseen)[0], encoder(**found)[0], atol=1e-4), name


@pytest.mark.parametrize("stride", [2, 3, 50])
def test_strides_preserve_unmasked_steps(stride: int) -> None:
    encoder, found = build("timeseries", "gru", stride=stride, pool="none"), features("timeseries")
    found["step_mask"][0, 4:] = 0
    tokens, mask = encoder(**found)
    assert mask.sum(1).tolist() == [-(-4 // stride), -(-7 // stride), -(-7 // stride)]
    alone, _ = encoder(**part(found, slice(0, 1), 4))
    torch.testing.assert_close(alone[0], tokens[0, : alone.shape[1]], rtol=1e-4, atol=1e-5)


def test_maps_and_patches_as_tokens() -> None:
    tokens, mask = build("image", "resnet", pool="none")(**features("image"))
    assert tokens.shape == (3, 100, 8)  # half of 20 × 20
    tokens, mask = build("image", "transformer", pool="none")(**features("image"))
    assert tokens.shape == (3, 9, 8)  # 20 pixels are three patches of 8 with padding
    assert mask.all()
    tokens, _ = build("audio", "gru", pool="none")(**features("audio"))
    assert tokens.shape == (3, 8, 16)  # 30 frames, four at a time, in two directions


def test_older_items_have_lower_weights() -> None:
    encoder = build("item_sequence", "embedding")
    items, mask = torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.int64)
    vectors = encoder.embedding.weight
    even, _ = encoder(items=items, ages=torch.tensor([[0.0, 0.0]]), item_mask=mask)
    torch.testing.assert_close(even[0, 0], (vectors[2] + vectors[3]) / 2)
    old, _ = encoder(items=items, ages=torch.tensor([[9.0, 0.0]]), item_mask=mask)
    share = torch.tensor(-0.9).exp()  # λ begins at 0.1
    torch.testing.assert_close(old[0, 0], (share * vectors[2] + vectors[3]) / (1 + share))


@pytest.mark.parametrize("name", ["embedding", "gru", "transformer"])
def test_item_times_matter_and_unknown_items_have_no_effect(name: str) -> None:
    encoder, found = build("item_sequence", name), features("item_sequence")
    assert not torch.allclose(
        encoder(**found | {"ages": found["ages"] * 2})[0], encoder(**found)[0], atol=1e-4
    )
    assert not encoder.embedding.weight[:2].any()


@pytest.mark.parametrize(("numbers", "categories"), [(["a"], {}), ([], {"c": ["x"]})])
def test_tabular_inputs_of_one_type_of_column(numbers: list[str], categories: dict[str, list[str]]) -> None:
    source = SimpleNamespace(type="tabular", numeric_columns=numbers, category_vocabularies=categories)
    encoder = build("tabular", "mlp", source)
    given = torch.rand(2, len(numbers))
    codes = torch.ones(2, len(categories), dtype=torch.int64)
    tokens, _ = encoder(numbers=given, missing=torch.zeros_like(given), categories=codes)
    assert tokens.shape == (2, 1, 8)


def test_ngrams_are_summed_by_their_weights() -> None:
    encoder = build("text", "ngrams")
    codes, weights = torch.tensor([[3, 1], [2, 0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    tokens, _ = encoder(input_ids=codes, weights=weights)
    vectors = encoder.embedding.weight
    torch.testing.assert_close(tokens[:, 0], torch.stack([0.6 * vectors[3] + 0.8 * vectors[1], vectors[2]]))


def test_the_vector_of_a_pretrained_encoder_follows_that_of_ngrams(tmp_path: Path) -> None:
    bert = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert"))}
    source = TextInput(type="text", column="text", max_tokens=8)
    alone, both = build("text", "ngrams"), build("text", "ngrams", source, pretrained=bert)
    with torch.no_grad():
        both.embedding.weight.copy_(alone.embedding.weight)
    found, read = features("text", "ngrams"), features("text")
    read["input_ids"] %= 15
    tokens, mask = both(**found, **{PRETRAINED_PREFIX + name: values for name, values in read.items()})
    vectors, _ = build("text", "huggingface", source, **bert)(**read)
    torch.testing.assert_close(tokens[..., :8], alone(**found)[0])
    torch.testing.assert_close(tokens[..., 8:], nn.functional.layer_norm(vectors, (16,)))
    assert mask.shape == tokens.shape[:2] == (3, 1)
    assert both.width == 24


def test_frames_are_mixed_by_time() -> None:
    found = features("video")
    turned = found | {"frames": found["frames"].flip(1)}
    mean, temporal = build("video", "frames"), build("video", "frames", pool="transformer")
    torch.testing.assert_close(mean(**turned)[0], mean(**found)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(temporal(**turned)[0], temporal(**found)[0], atol=1e-4)
    with pytest.raises(
        SpecError, match=r"encoder\.heads: 3 does not divide the image encoder's width of 16; use a divisor"
    ):
        build("video", "frames", pool="transformer", heads=3)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_frames_are_preprocessed_as_images_of_the_pretrained_encoder(kind: str, tmp_path: Path) -> None:
    """Compare a frame of the encoder's size with the result of the image processor."""
    import numpy as np
    from PIL import Image

    from rayfuse.modalities.pretrained import load_image_processor

    folder = str(getattr(tiny_encoders, kind)(tmp_path))
    encoder = build("video", "frames", encoder={"type": "huggingface", "model": folder, "pool": "none"})
    size = 18 if kind == "dinov2" else 16
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    wanted = load_image_processor(folder)(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
    frames = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(encoder.preprocess(frames), wanted, rtol=1e-4, atol=1e-4)
    larger = torch.nn.functional.interpolate(frames, (40, 40))
    assert encoder.preprocess(larger).shape == wanted.shape
    mask = torch.ones(1, 2, dtype=torch.int64)
    tokens, _ = encoder(frames=larger.repeat(2, 1, 1, 1)[None], frame_mask=mask, frame_times=torch.ones(1, 2))
    assert tokens.shape == (1, 1, encoder.width)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("image", "resnet", {}),
        ("image", "transformer", {"patch_size": 4, "layer_decay": 0.5}),
        ("image", "resnet", {"pool": "none"}),
        ("text", "gru", {}),
        ("text", "lstm", {"pool": "attention"}),
        ("text", "transformer", {"pool": "none"}),
        ("text", "ngrams", {"vocabulary": None, "idf": None, "characters": [3, 4]}),
    ],
)
def test_every_encoder_trains_and_reloads(
    kind: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    block = {"type": name, **SMALL[name], **options}
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, **{f"inputs.{kind}.encoder": block}))


@pytest.mark.parametrize("train", ["frozen", "lora"])
def test_ngrams_beside_a_pretrained_encoder_train_and_reload(train: str, tmp_path: Path) -> None:
    bert = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert")), "train": train}
    block = {"type": "ngrams", "hidden_size": 8, "pretrained": bert}
    model, _ = train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, **{"inputs.text.encoder": block}))
    assert (tmp_path / "model/encoders/text/pretrained/config.json").exists()
    trained = {name for name in trainable_parameters(model) if name.startswith("encoders.text.pretrained")}
    assert bool(trained) == (train == "lora")


@pytest.mark.parametrize("name", ["gru", "lstm", "transformer"])
def test_lower_precision(name: str) -> None:
    encoder, found = build("text", name), features("text")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = encoder(**found)
    torch.testing.assert_close(low.float(), encoder(**found)[0], rtol=0.05, atol=0.05)
