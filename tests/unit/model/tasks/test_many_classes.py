"""Metrics, scores and schemas over thousands of classes: equal to scikit-learn's, in bounded memory and size."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from rayfuse.model.tasks import build_task, task_class
from rayfuse.model.tasks.accumulators import Accumulator, new_accumulator
from rayfuse.spec.tasks import (
    ClassificationTaskConfig,
    MultiLabelTaskConfig,
    OrdinalTaskConfig,
    TaggingTaskConfig,
)

rng = np.random.default_rng(0)


def classification(classes: int, **options: Any) -> ClassificationTaskConfig:
    names = [f"class {i}" for i in range(classes)]
    return ClassificationTaskConfig(type="classification", column="x", classes=names, **options)


def ordinal(classes: int) -> OrdinalTaskConfig:
    return OrdinalTaskConfig(type="ordinal", column="x", classes=list(range(classes)))


def multi_label(classes: int, **options: Any) -> MultiLabelTaskConfig:
    names = [f"class {i}" for i in range(classes)]
    return MultiLabelTaskConfig(type="multi_label", column="x", classes=names, **options)


def accumulated(head: Any, outputs: np.ndarray, targets: np.ndarray, size: int) -> Accumulator[Any]:
    """Accumulate batches in two workers, and merge these."""
    workers = new_accumulator(head), new_accumulator(head)
    for number, start in enumerate(range(0, len(outputs), size)):
        workers[number % 2].update(head, outputs[start : start + size], targets[start : start + size])
    workers[0].merge(pickle.loads(pickle.dumps(workers[1])))
    return workers[0]


def assert_equal(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_metrics_of_a_thousand_classes_are_those_of_sklearn() -> None:
    head: Any = build_task(classification(1000), 4)
    outputs = rng.normal(size=(600, 1000)).astype(np.float32)
    true = rng.integers(0, 1000, 600)
    outputs[np.arange(600), true] += 3
    found, predicted = accumulated(head, outputs, true.astype(np.float32), 64), outputs.argmax(axis=1)
    metrics = found.metrics(head)
    assert metrics["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average in ("micro", "macro", "weighted"):
        values = sklearn.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
        scores = dict(zip(("precision", "recall", "f1"), values, strict=False))
        assert_equal({name: metrics[f"{name}_{average}"] for name in scores}, scores)
    assert_equal(metrics, head.metrics(outputs, true.astype(np.float32)))
    details = found.details(head)
    table = np.zeros((1000, 1000), dtype=int)
    for row, column, count in details["confusion"]:
        table[row, column] = count
    np.testing.assert_array_equal(table, sklearn.confusion_matrix(true, predicted, labels=range(1000)))
    assert len(json.dumps(details["confusion"])) < 20_000


def test_metrics_of_many_levels_are_those_of_sklearn() -> None:
    head: Any = build_task(ordinal(200), 4)
    outputs = (rng.normal(0, 60, (500, 1)) - np.arange(199) + 100).astype(np.float32)
    true = rng.integers(0, 200, 500)
    predicted = head.predicted_classes(outputs)
    found = accumulated(head, outputs, true.astype(np.float32), 64).metrics(head)
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(true, predicted))
    kappa = sklearn.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(200))
    assert found["kappa"] == pytest.approx(kappa)
    assert found["f1_macro"] == pytest.approx(sklearn.f1_score(true, predicted, average="macro"))
    assert_equal(found, head.metrics(outputs, true.astype(np.float32)))


def test_metrics_of_many_labels_are_those_of_sklearn() -> None:
    head: Any = build_task(multi_label(300), 4)
    outputs = rng.normal(-3, 2, (200, 300)).astype(np.float32)
    true = rng.random((200, 300)) < 0.02
    found, predicted = accumulated(head, outputs, true.astype(np.float32), 32), outputs >= 0
    metrics, occurring = found.metrics(head), np.flatnonzero(true.any(axis=0))
    assert metrics["exact_match"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    for average, labels in (("micro", None), ("macro", occurring)):
        values = sklearn.precision_recall_fscore_support(
            true, predicted, labels=labels, average=average, zero_division=0
        )
        scores = dict(zip(("precision", "recall", "f1"), values, strict=False))
        assert_equal({name: metrics[f"{name}_{average}"] for name in scores}, scores)
    wanted = sklearn.average_precision_score(true[:, occurring], outputs[:, occurring], average="macro")
    assert metrics["map"] == pytest.approx(wanted)
    per_class = found.details(head)["per_class"]
    f1 = sklearn.f1_score(true, predicted, average=None, zero_division=0)
    assert [one["f1"] for one in per_class.values()] == pytest.approx(f1)


def test_the_memory_of_an_evaluation_does_not_grow_with_rows_times_classes() -> None:
    tagging = TaggingTaskConfig(type="tagging", column="x", input="t", entities=[f"e{i}" for i in range(200)])
    for config, shape in (
        (classification(1000), (1000,)),
        (ordinal(1000), (999,)),
        (tagging, (12, 402)),
    ):
        head: Any = build_task(config, 4)
        outputs = rng.normal(size=(512, *shape)).astype(np.float32)
        targets = rng.integers(0, 300, outputs.shape[:-1]).astype(np.float32)
        state = accumulated(head, outputs, targets, 128)
        assert len(pickle.dumps(state)) < outputs.nbytes / 40


def test_a_temperature_is_fitted_from_a_bounded_number_of_outputs() -> None:
    rows = {n: build_task(classification(n), 4).calibration_rows for n in (2, 1000, 10_000)}
    assert rows[1000] * 1000 == pytest.approx(rows[2] * 2, rel=1e-3)
    assert rows[10_000] > 100


def test_scores_of_many_classes_are_the_most_probable_ones() -> None:
    logits = torch.zeros(1, 101)
    logits[0, [5, 70, 9]] = torch.tensor([3.0, 2.0, 1.0])
    few, many = build_task(classification(100), 4), build_task(classification(101), 4)
    assert len(few.format_predictions(logits[:, :100])[0]["scores"]) == 100
    [prediction] = many.format_predictions(logits)
    assert prediction["label"] == "class 5"
    assert list(prediction["scores"])[:3] == ["class 5", "class 70", "class 9"]
    assert len(prediction["scores"]) == 20
    every = few.format_predictions(logits[:, :100])[0]["scores"]
    [top] = build_task(classification(100, top_k=2), 4).format_predictions(logits[:, :100])
    assert top["scores"] == {name: every[name] for name in ("class 5", "class 70")}
    whole = build_task(classification(101, top_k=1000), 4).format_predictions(logits)[0]["scores"]
    assert list(whole) == [f"class {i}" for i in range(101)]


def test_scores_of_many_labels_include_those_of_the_predicted_ones() -> None:
    logits = torch.full((1, 200), -9.0)
    logits[0, :30] = 2.0
    [prediction] = build_task(multi_label(200), 4).format_predictions(logits)
    assert prediction["labels"] == [f"class {i}" for i in range(30)]
    assert set(prediction["scores"]) == set(prediction["labels"])
    [none] = build_task(multi_label(200), 4).format_predictions(torch.full((1, 200), -9.0))
    assert none["labels"] == []
    assert len(none["scores"]) == 20


@pytest.mark.parametrize("config", [classification(10_000), ordinal(10_000), multi_label(10_000)])
def test_schemas_of_many_classes_are_short_and_allow_the_predictions(config: Any) -> None:
    from jsonschema import Draft202012Validator

    schema = task_class(config).response_schema(config)
    assert len(json.dumps(schema)) < 1000
    head = build_task(config, 4)
    width = 9_999 if config.type == "ordinal" else 10_000
    outputs = torch.linspace(5, -20, width)[None]
    for prediction in head.format_predictions(outputs):
        Draft202012Validator(schema).validate(prediction)
        assert len(prediction["scores"]) < 10_000
