"""Augmentations: the effect of each, and that it depends on the seed alone."""

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from rayfuse.errors import SpecError
from rayfuse.modalities.augment import augment
from rayfuse.spec import augment as spec
from rayfuse.spec.augment import AUGMENTATIONS

OPTIONS = {
    "image": TypeAdapter(spec.ImageAugment),
    "audio": TypeAdapter(spec.AudioAugment),
    "text": TypeAdapter(spec.TextAugment),
    "timeseries": TypeAdapter(spec.TimeseriesAugment),
}


def image(size: int = 28) -> dict[str, np.ndarray]:
    pixels = np.full((3, size, size), -1, dtype=np.float32)
    pixels[:, size // 4 : size // 2, size // 3 : size // 2] = 1
    return {"pixel_values": pixels}


def mel() -> dict[str, np.ndarray]:
    return {"mel": np.random.default_rng(0).standard_normal((40, 60), dtype=np.float32)}


def readings() -> dict[str, np.ndarray]:
    values = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    observed = np.ones((3, 50), dtype=np.float32)
    observed[0, 7] = 0
    step_mask = (np.arange(50) < 40).astype(np.int64)
    observed *= step_mask
    return {"values": values * observed, "observed": observed, "step_mask": step_mask}


def ids(n: int = 12) -> dict[str, np.ndarray]:
    return {"input_ids": np.arange(1, n + 1), "attention_mask": np.ones(n, dtype=np.int64)}


FEATURES: dict[str, Any] = {"image": image, "audio": mel, "text": ids, "timeseries": readings}
WAVEFORM = {"waveform": np.sin(np.arange(800, dtype=np.float32))}


def changed(kind: str, options: dict[str, Any], features: Any = None, seed: int = 0) -> dict[str, np.ndarray]:
    step = OPTIONS[kind].validate_python(options)
    return augment(kind, [step], features or FEATURES[kind](), np.random.default_rng(seed))


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, all_ in AUGMENTATIONS.items() for name in all_]
)
def test_augmentations_depend_on_the_seed_and_preserve_types(kind: str, name: str) -> None:
    features = dict(WAVEFORM) if name == "gain" else FEATURES[kind]()
    before = {key: array.copy() for key, array in features.items()}
    options = {"type": name, "p": 1.0} | (
        {f"{'swap' if name == 'token_swap' else 'drop'}_prob": 0.5}
        if kind == "text" or name == "drop_channels"
        else {}
    )
    outcomes = [changed(kind, options, features, seed) for seed in range(8)]
    assert same(features, before), "what was given must stay as it is"
    assert any(not same(outcome, before) for outcome in outcomes)
    assert same(outcomes[3], changed(kind, options, features, 3))
    for outcome in outcomes:
        assert outcome.keys() == before.keys()
        assert {key: array.dtype for key, array in outcome.items()} == {k: a.dtype for k, a in before.items()}
        assert all(np.isfinite(array).all() for array in outcome.values())
        if kind != "text":
            assert {k: a.shape for k, a in outcome.items()} == {k: a.shape for k, a in before.items()}


def test_every_augmentation_has_an_implementation() -> None:
    for kind in OPTIONS:
        for name in AUGMENTATIONS[kind]:
            assert callable(AUGMENTATIONS[kind].implementation(name))


def test_an_affine_change_of_zero_is_the_identity() -> None:
    still = {"type": "affine", "degrees": 0, "translate": 0, "scale": [1, 1]}
    np.testing.assert_allclose(changed("image", still)["pixel_values"], image()["pixel_values"], atol=1e-5)
    np.testing.assert_allclose(
        changed("image", {"type": "resized_crop", "scale": [1, 1]})["pixel_values"].shape, (3, 28, 28)
    )


def test_affine_rotates_about_the_center_and_fills_with_the_corner_color() -> None:
    dot = {"pixel_values": np.zeros((3, 21, 21), dtype=np.float32)}
    dot["pixel_values"][:, 10, 10] = 1
    turned = changed("image", {"type": "affine", "degrees": 180, "translate": 0, "scale": [0.5, 0.5]}, dot)
    brightest = np.unravel_index(turned["pixel_values"][0].argmax(), (21, 21))
    assert np.abs(np.array(brightest) - 10).max() <= 1
    moved = changed("image", {"type": "affine", "translate": 0.5, "degrees": 45, "scale": [0.4, 0.4]})[
        "pixel_values"
    ]
    assert moved[:, [0, 0, -1, -1], [0, -1, 0, -1]].min() == moved.min() == -1


def test_elastic_is_smooth_and_bounded() -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32), (3, 40, 1))
    for seed in range(5):
        bent = changed("image", {"type": "elastic", "strength": 0.05}, {"pixel_values": ramp}, seed)
        moves = (bent["pixel_values"] - ramp)[:, 3:-3, 3:-3]
        assert 0.5 < np.abs(moves).max() <= 2.001
        assert np.abs(np.diff(moves, axis=1)).max() < 1, "no tears between the cells of the grid"
        np.testing.assert_array_equal(bent["pixel_values"][0], bent["pixel_values"][1])


def test_flip_erasing_and_color_jitter() -> None:
    pixels = image()["pixel_values"]
    np.testing.assert_array_equal(
        changed("image", {"type": "horizontal_flip", "p": 1})["pixel_values"], pixels[:, :, ::-1]
    )
    erased = changed("image", {"type": "erasing", "scale": [0.25, 0.25]})["pixel_values"]
    blank = np.isclose(erased, pixels.mean(axis=(1, 2), keepdims=True), atol=1e-5)
    assert 0.15 < blank[0].mean() < 0.35
    duller = changed("image", {"type": "color_jitter", "brightness": 0, "contrast": [0.5, 0.5]})[
        "pixel_values"
    ]
    np.testing.assert_allclose(duller.std(), pixels.std() / 2, rtol=1e-5)


def test_noise_scales_with_the_standard_deviation() -> None:
    for scale in (1.0, 100.0):
        clip = {"mel": mel()["mel"] * np.float32(scale)}
        noise = changed("audio", {"type": "gaussian_noise", "sigma": [2, 2]}, clip)["mel"] - clip["mel"]
        assert noise.std() / clip["mel"].std() == pytest.approx(2, rel=0.05)
    spread = [
        (changed("audio", {"type": "gaussian_noise", "sigma": [0, 4]}, None, s)["mel"] - mel()["mel"]).std()
        for s in range(200)
    ]
    assert min(spread) < 0.3
    assert max(spread) > 3.5
    assert np.mean(spread) == pytest.approx(2, abs=0.3)


def test_spec_augment_masks_bands_and_frames() -> None:
    mean = mel()["mel"].mean()
    for seed in range(5):
        options = {"type": "spec_augment", "freq_mask_ratio": 0.3, "time_mask_ratio": 0.3}
        masked = np.isclose(changed("audio", options, None, seed)["mel"], mean)
        bands, frames = masked.all(axis=1), masked.all(axis=0)
        assert bands.sum() <= 12
        assert frames.sum() <= 18
        np.testing.assert_array_equal(masked, bands[:, None] | frames[None, :])


def test_audio_augmentations_reject_other_features() -> None:
    with pytest.raises(
        SpecError, match="`spec_augment` is for spectrograms, and the features of this input are a waveform"
    ):
        changed("audio", {"type": "spec_augment"}, dict(WAVEFORM))
    with pytest.raises(SpecError, match="`gain` is for waveforms"):
        changed("audio", {"type": "gain"})
    with pytest.raises(SpecError, match="`token_swap` would separate words from their targets"):
        changed("text", {"type": "token_swap"}, {**ids(), "word_starts": np.array([1, 3])})


def test_shift_rolls_audio_and_leaves_masks() -> None:
    clip = {**WAVEFORM, "attention_mask": np.ones(800, dtype=np.int64)}
    moved = changed("audio", {"type": "shift", "max_shift": 0.5}, clip)
    np.testing.assert_allclose(np.sort(moved["waveform"]), np.sort(clip["waveform"]))
    assert moved["attention_mask"] is clip["attention_mask"]


def test_token_dropout_keeps_both_ends_and_first_tokens_of_words() -> None:
    words = {**ids(40), "word_starts": np.array([1, 4, 20, -1])}
    dropped = changed("text", {"type": "token_dropout", "drop_prob": 0.7}, words)
    assert 3 < len(dropped["input_ids"]) < 30
    assert len(dropped["attention_mask"]) == len(dropped["input_ids"])
    assert dropped["input_ids"][[0, -1]].tolist() == [1, 40]
    assert dropped["input_ids"][dropped["word_starts"][:3]].tolist() == [2, 5, 21]
    assert dropped["word_starts"][3] == -1
    assert len(changed("text", {"type": "token_dropout", "drop_prob": 0.9}, ids(1))["input_ids"]) == 1


def test_token_swap_swaps_neighbors() -> None:
    swapped = changed("text", {"type": "token_swap", "swap_prob": 0.5}, ids(40))["input_ids"]
    assert sorted(swapped) == list(range(1, 41))
    assert 0 < np.abs(swapped - np.arange(1, 41)).max() <= 1
    assert swapped[[0, -1]].tolist() == [1, 40]


def test_missing_values_stay_missing() -> None:
    for name in AUGMENTATIONS["timeseries"]:
        for seed in range(5):
            found = changed("timeseries", {"type": name, "p": 1.0}, None, seed)
            assert not found["values"][found["observed"] == 0].any(), name
            assert not found["observed"][:, 40:].any()
            assert found["observed"].any(), name


def test_time_warp_keeps_both_ends() -> None:
    rising = readings()
    rising["observed"] = np.ones_like(rising["observed"]) * rising["step_mask"]
    rising["values"] = (np.arange(50, dtype=np.float32) * rising["observed"]).astype(np.float32)
    warped = changed("timeseries", {"type": "time_warp", "strength": 0.5}, rising)["values"][0, :40]
    assert warped[0] == 0
    assert warped[-1] == pytest.approx(39, abs=1e-3)
    assert (np.diff(warped) > 0).all()
    assert np.abs(warped - np.arange(40)).max() > 0.5
