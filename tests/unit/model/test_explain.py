"""Contributions compared with brute force over all orders, saliency with a known patch."""

import io
import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
from PIL import Image
from tiny_jobs import make_model_folder, tiny_job
from torch import nn

from rayfuse.data.collate import collate
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import SpecError
from rayfuse.model.evaluation import EvaluationOutputs, collect_outputs
from rayfuse.model.explain import (
    INTEGRATION_STEPS,
    MAX_INPUTS,
    SALIENCY_GRID_SIZE,
    all_subsets,
    check_explainable,
    compute_contributions,
    constant_baseline,
    explain,
    input_importance,
    integrated_gradients,
    num_forward_passes,
    shapley,
    sum_into_bins,
    to_json,
)
from rayfuse.model.fused import FusedModel, task_heads
from rayfuse.model.predictor import Predictor
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import FusedState
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

NAMES = ("image", "audio", "text", "table")


def game(seed: int = 0, rows: int = 5) -> dict[frozenset[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {frozenset(subset): rng.normal(size=rows) for subset in all_subsets(NAMES)}


def by_orders(values: Mapping[frozenset[str], np.ndarray]) -> np.ndarray:
    """Average each input's gain over all orders of adding inputs."""
    orders = list(permutations(NAMES))
    found = np.zeros((len(values[frozenset()]), len(NAMES)))
    for order in orders:
        for position, name in enumerate(order):
            before = frozenset(order[:position])
            found[:, NAMES.index(name)] += values[before | {name}] - values[before]
    return found / len(orders)


def test_shapley_values_are_the_mean_gain_over_all_orders() -> None:
    values = game()
    np.testing.assert_allclose(shapley(values, NAMES), by_orders(values), atol=1e-12)


def test_shapley_values_sum_to_the_gain_of_all_inputs() -> None:
    values = game(1)
    gained = values[frozenset(NAMES)] - values[frozenset()]
    np.testing.assert_allclose(shapley(values, NAMES).sum(axis=1), gained, atol=1e-12)


def test_shapley_values_of_an_additive_game_are_its_terms() -> None:
    terms = {name: np.random.default_rng(i).normal(size=3) for i, name in enumerate(NAMES)}
    values = {
        frozenset(subset): sum((terms[n] for n in subset), np.full(3, 0.25)) for subset in all_subsets(NAMES)
    }
    np.testing.assert_allclose(shapley(values, NAMES), np.stack([*terms.values()], axis=1), atol=1e-12)


def test_shapley_values_are_symmetric_and_zero_for_unused_inputs() -> None:
    """Test with an exclusive or of the first two inputs."""
    values = {
        frozenset(subset): np.array([float({"image", "audio"} <= set(subset))])
        for subset in all_subsets(NAMES)
    }
    np.testing.assert_allclose(shapley(values, NAMES), [[0.5, 0.5, 0, 0]], atol=1e-12)


class Several(TaskHead):
    """A head with several outputs and no attribution score."""

    def forward(self, fused: FusedState) -> torch.Tensor:
        return fused["vector"]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum(1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        return [{"values": row} for row in outputs.tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {}


def test_a_head_without_attribution_score_is_not_explained() -> None:
    several = {subset: torch.ones(3, 2) for subset in all_subsets(NAMES)}
    assert compute_contributions(Several(None, 2), several, NAMES) is None
    one = compute_contributions(
        Several(None, 1), {s: torch.full((3, 1), float(len(s))) for s in several}, NAMES
    )
    assert one is not None
    np.testing.assert_allclose(one.shap_values, np.ones((3, 4)))


def test_too_many_inputs_are_rejected_with_the_number_of_passes() -> None:
    check_explainable(["x"] * MAX_INPUTS)
    with pytest.raises(SpecError, match="9 inputs.*512 subsets; at most 8"):
        check_explainable(["x"] * 9)


def test_integrated_gradients_are_complete() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x = torch.randn(4, 3, 4, dtype=torch.float64) * 2
    first, second = integrated_gradients(lambda points: list(model(points).unbind(1)), x)
    for column, found in enumerate((first, second)):
        assert found is not None
        assert found.shape == x.shape
        wanted = (model(x) - model(constant_baseline(x)))[:, column]
        torch.testing.assert_close(found.sum(dim=(1, 2)), wanted.detach(), rtol=1e-3, atol=1e-3)


def test_integrated_gradients_of_a_linear_score_are_its_terms() -> None:
    weights, x = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[3.0, 1.0, 5.0], [0.0, 0.0, -2.0]])
    [found] = integrated_gradients(lambda points: [points @ weights], x, steps=2)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0, 0.0], [2.0, -4.0, 0.0]]))


def test_integrated_gradients_of_a_normalizing_network() -> None:
    """Scaling its input changes nothing, so a path to zero would be constant except at its end."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.GroupNorm(4, 8), nn.GELU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 1))
    x = torch.rand(4, 3, 8, 8)
    [found] = integrated_gradients(lambda points: [model(points).squeeze(1)], x)
    assert found is not None
    wanted = (model(x) - model(constant_baseline(x))).squeeze(1).detach()
    torch.testing.assert_close(found.flatten(1).sum(1), wanted, rtol=0.01, atol=1e-3)


def test_a_score_without_gradient_has_no_attributions() -> None:
    weight = torch.ones(2, requires_grad=True)
    detached, elsewhere = integrated_gradients(
        lambda points: [points.detach().sum(1), (points.detach() * weight).sum(1)], torch.ones(1, 2)
    )
    assert detached is None
    assert elsewhere is None


def test_bins_keep_the_sum() -> None:
    values = np.random.default_rng(0).normal(size=(3, 101))
    assert sum_into_bins(values, 16).shape == (3, 16)
    np.testing.assert_allclose(sum_into_bins(values, 16).sum(axis=1), values.sum(axis=1))
    np.testing.assert_array_equal(sum_into_bins(values, 200), values)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("explained")
    overrides = {"tasks.brightness": {"type": "regression", "weight": 0.1}, "inputs.text.optional": True}
    return Predictor(make_model_folder(folder, 20, job=tiny_job(folder / "data", audio=True, **overrides)))


def speckled(seed: int) -> bytes:
    """Make an image of 8 × 8 random colors: in a uniform one, max pooling takes an arbitrary pixel."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def samples(predictor: Predictor) -> list[Sample]:
    """Make samples with all inputs, without audio, with a text alone, and with the image of the first again."""
    folder = predictor.job.data.train.rpartition("/")[0]
    clip, text = Path(folder, "train0.wav").read_bytes(), "which colour is it?"
    image, other = speckled(0), speckled(1)
    values: list[dict[str, Any]] = [
        {"image": image, "audio": clip, "text": text},
        {"image": other, "text": text},
        {"text": text},
        {"image": image, "text": "which pitch is it?"},
    ]
    return [predictor.preprocess(value) for value in values]


def test_contributions_sum_to_the_score_and_absent_inputs_have_none(
    predictor: Predictor, samples: list[Sample]
) -> None:
    answers = predictor.predict_samples(samples, explain=True)
    for sample, answer in zip(samples, answers, strict=True):
        assert list(answer) == ["outputs", "inputs_used", "explain"]
        tasks, outputs = answer["explain"]["tasks"], answer["outputs"]
        assert tasks["answer"]["score"] == "probability"
        assert tasks["answer"]["value"] == pytest.approx(max(outputs["answer"]["scores"].values()), rel=1e-3)
        assert tasks["brightness"]["score"] == "value"
        assert tasks["brightness"]["value"] == pytest.approx(outputs["brightness"]["value"], rel=1e-3)
        for found in tasks.values():
            assert list(found["contributions"]) == answer["inputs_used"]
            gained = found["value"] - found["base_value"]
            assert sum(found["contributions"].values()) == pytest.approx(
                gained, abs=2e-3 * abs(found["value"])
            )
            assert set(found.get("saliency", {})) == {"image", "audio"} & set(sample.features)


def test_predictions_are_the_same_with_and_without_an_explanation(
    predictor: Predictor, samples: list[Sample]
) -> None:
    explained, bare = predictor.predict_samples(samples, explain=True), predictor.predict_samples(samples)
    for with_reasons, without in zip(explained, bare, strict=True):
        assert "explain" not in without
        assert with_reasons["inputs_used"] == without["inputs_used"]
        assert with_reasons["outputs"]["answer"]["scores"] == pytest.approx(
            without["outputs"]["answer"]["scores"], abs=1e-6
        )


def test_explanations_do_not_depend_on_the_batch(predictor: Predictor, samples: list[Sample]) -> None:
    """Two samples share an image, which gets the attribution of each alone."""
    heads, modalities = task_heads(predictor.model), predictor.preprocessor.modalities
    together = explain(predictor.model, collate(samples, modalities), modalities)
    for row, sample in enumerate(samples):
        alone = explain(predictor.model, collate([sample], modalities), modalities)
        for task in heads:
            parts = together.contributions[task].shap_values[row], alone.contributions[task].shap_values[0]
            np.testing.assert_allclose(*parts, rtol=1e-3, atol=1e-4)
            for name in {"image", "audio"} & set(sample.features):
                found, other = together.saliency[task][name][row], alone.saliency[task][name][0]
                np.testing.assert_allclose(found, other, rtol=0.01, atol=0.01 * np.abs(other).max())
    assert together.saliency["answer"]["image"].shape == (4, 1, 8, 8)
    assert not together.saliency["answer"]["image"][2].any(), "this sample has no image"


def test_attention_is_reported_for_present_inputs(
    predictor: Predictor, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = predictor.model.fusion
    joined = fusion.forward

    def attending(inputs: Any) -> Any:
        present = torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1).float()
        return {**joined(inputs), "attention": present / present.sum(dim=1, keepdim=True).clamp(min=1)}

    monkeypatch.setattr(fusion, "forward", attending)
    attention = [one["explain"]["attention"] for one in predictor.predict_samples(samples, explain=True)]
    assert attention[1] == {"image": 0.5, "text": 0.5}
    assert attention[2] == {"text": 1.0}


def test_means_over_rows_do_not_depend_on_batches_or_workers(
    predictor: Predictor, samples: list[Sample]
) -> None:
    heads, inputs = task_heads(predictor.model), list(predictor.job.inputs)
    answered = [Sample(s.features, s.keys, {"answer": 0.0, "brightness": 1.0}) for s in samples]
    subsets = all_subsets(inputs)

    def outputs(chosen: list[Sample]) -> list[EvaluationOutputs]:
        batches = [collate(chosen, predictor.preprocessor.modalities)]
        return collect_outputs(predictor.model, heads, batches, subsets)

    whole, merged = outputs(answered), outputs(answered[:1])
    for mine, theirs in zip(merged, outputs(answered[1:]), strict=True):
        mine.merge(theirs)
    one = input_importance(heads, inputs, dict(zip(subsets, whole, strict=True)))
    other = input_importance(heads, inputs, dict(zip(subsets, merged, strict=True)))
    assert one["answer"]["rows_with"] == other["answer"]["rows_with"] == {"image": 3, "text": 4, "audio": 1}
    for task in one:
        assert one[task]["contributions"] == pytest.approx(other[task]["contributions"], rel=1e-3)


def test_saliency_explains_the_log_odds_of_the_same_probability(predictor: Predictor) -> None:
    head = task_heads(predictor.model)["answer"]
    answered, outputs = torch.randn(3, 6), torch.randn(3, 6)
    probability, odds = head.attribution_score(outputs, answered), head.saliency_score(outputs, answered)
    assert probability is not None
    assert odds is not None
    torch.testing.assert_close(probability, outputs.softmax(1)[range(3), answered.argmax(1)])
    torch.testing.assert_close(odds, probability.logit(), rtol=1e-4, atol=1e-4)


def test_explaining_does_not_change_the_model(predictor: Predictor, samples: list[Sample]) -> None:
    before = {name: p.requires_grad for name, p in predictor.model.named_parameters()}
    predictor.predict_samples(samples, explain=True)
    assert all(p.grad is None for p in predictor.model.parameters())
    assert before == {name: p.requires_grad for name, p in predictor.model.named_parameters()}


def test_the_cost_counts_subsets_and_saliency(predictor: Predictor, samples: list[Sample]) -> None:
    assert [num_forward_passes(sample, predictor.preprocessor.modalities) for sample in samples[:3]] == [
        8 + 2 * INTEGRATION_STEPS,
        4 + INTEGRATION_STEPS,
        2,
    ]


def test_a_frozen_pretrained_encoder_has_a_saliency_too(tmp_path: Path) -> None:
    encoder = {"type": "huggingface", "model": str(tiny_encoders.vit(tmp_path / "vit")), "train": "frozen"}
    job = tiny_job(tmp_path / "data", **{"inputs.image.encoder": encoder})
    predictor = Predictor(make_model_folder(tmp_path, 0, job=job))
    image = (tmp_path / "data" / "train0.png").read_bytes()
    [answer] = predictor.predict_samples([predictor.preprocess({"image": image, "text": "?"})], explain=True)
    grid = np.array(answer["explain"]["tasks"]["answer"]["saliency"]["image"])
    assert grid.any()
    assert max(grid.shape) <= SALIENCY_GRID_SIZE


def patch_job(folder: Path) -> Job:
    """Make a job that classifies the color of a patch in a gray image."""
    (folder / "rows.jsonl").write_text("")
    content = {
        "kind": "job",
        "name": "patch",
        "data": {"train": str(folder / "rows.jsonl")},
        "inputs": {
            "image": {
                "type": "image",
                "size": 16,
                "encoder": {"type": "conv", "hidden_size": 4},
                "max_items": 2,
            }
        },
        "align": {"type": "linear", "dim": 8},
        "fusion": {"type": "concat", "hidden": 16, "layers": 1, "dropout": 0.0},
        "tasks": {"colour": {"type": "classification", "column": "label", "classes": ["red", "green"]}},
        "output": {"storage": str(folder / "runs")},
    }
    (folder / "job.yaml").write_text(json.dumps(content))
    return load_spec(str(folder / "job.yaml"), Job)


def test_saliency_finds_the_patch_that_decides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng, job = np.random.default_rng(0), patch_job(tmp_path)
    pixels = rng.normal(0, 0.02, size=(64, 3, 16, 16)).astype(np.float32)
    corners, labels = rng.integers(0, 12, size=(64, 2)), rng.integers(0, 2, size=64)
    for image, (y, x), label in zip(pixels, corners, labels, strict=True):
        image[label, y : y + 4, x : x + 4] += 1.0
    samples = [
        Sample({"image": [{"pixel_values": image}]}, {"image": [bytes([i])]}, {"colour": float(label)})
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    modalities = Preprocessor(job.inputs).modalities
    model, batch = FusedModel(job), collate(samples, modalities)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.total_loss(model.losses(model(batch), batch), batch).div(batch.batch_size).backward()
        optimizer.step()
    found = explain(model.eval(), collate(samples[:16], modalities), modalities).saliency["colour"]["image"]
    windows = np.lib.stride_tricks.sliding_window_view(found[:, 0], (4, 4), axis=(1, 2)).sum(axis=(3, 4))
    brightest = [np.unravel_index(window.argmax(), window.shape) for window in windows]
    near = np.abs(np.array(brightest) - corners[:16]).max(axis=1) <= 2
    assert near.mean() > 0.8, "by chance one in seven windows is as near"
    two = Sample({"image": samples[0].features["image"] * 2}, {"image": [b"a", b"b"]}, {})
    listed = to_json(explain(model, collate([two], modalities), modalities), 0, task_heads(model))
    grids = np.array(listed["tasks"]["colour"]["saliency"]["image"])
    assert grids.shape == (2, 16, 16), "a grid for each item of a list"
