"""Fitted temperatures, and the expected calibration error on known cases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.model.evaluation import calibrate, collect_outputs, collect_raw_outputs, compute_metrics
from rayfuse.model.fused import FusedModel, task_heads, trainable_state_dict
from rayfuse.model.model_io import load_model, save_model
from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.calibration import Reliability
from rayfuse.model.tasks.multi_label import sigmoid
from rayfuse.spec.tasks import (
    ClassificationTaskConfig,
    MatchingTaskConfig,
    MultiLabelTaskConfig,
    OrdinalTaskConfig,
)

ROWS = 20_000
rng = np.random.default_rng(0)


def test_calibration_error_by_hand() -> None:
    """Ten predictions at 0.9 of which 7 are correct, ten at 0.6 of which 6 are: (|0.9 - 0.7| + 0) / 2."""
    probabilities = np.array([0.9] * 10 + [0.6] * 10)
    true = np.array([1] * 7 + [0] * 3 + [1] * 6 + [0] * 4)
    found, other = reliability(probabilities[:3], true[:3]), reliability(probabilities[3:], true[3:])
    found.merge(other)
    assert found.error() == pytest.approx(0.1)
    [low, high] = found.table()
    assert low == pytest.approx({"from": 8 / 15, "to": 9 / 15, "count": 10, "confidence": 0.6, "true": 0.6})
    assert high == pytest.approx(
        {"from": 13 / 15, "to": 14 / 15, "count": 10, "confidence": 0.9, "true": 0.7}
    )
    assert reliability(np.array([0.0, 1.0]), np.array([0, 1])).error() == 0
    empty = reliability(np.zeros(0), np.zeros(0))
    assert (empty.error(), empty.table()) == (0, [])


def reliability(probabilities: np.ndarray, correct: np.ndarray) -> Reliability:
    found = Reliability()
    found.add(probabilities, correct)
    return found


def drawn(probabilities: np.ndarray) -> np.ndarray:
    """Draw a class of each row by its probabilities."""
    below = probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1))
    return below.sum(axis=1).clip(max=probabilities.shape[1] - 1).astype(np.float32)


def classification() -> tuple[Any, np.ndarray, np.ndarray]:
    head = build_task(ClassificationTaskConfig(type="classification", column="x", classes=["a", "b", "c"]), 4)
    logits = rng.normal(0, 2, (ROWS, 3))
    exponents = np.exp(logits)
    return head, logits, drawn(exponents / exponents.sum(axis=1, keepdims=True))


def multi_label() -> tuple[Any, np.ndarray, np.ndarray]:
    head = build_task(MultiLabelTaskConfig(type="multi_label", column="x", classes=["a", "b"]), 4)
    logits = rng.normal(0, 2, (ROWS, 2))
    return head, logits, (rng.random((ROWS, 2)) < sigmoid(logits)).astype(np.float32)


def ordinal() -> tuple[Any, np.ndarray, np.ndarray]:
    head = build_task(OrdinalTaskConfig(type="ordinal", column="x", classes=[1, 2, 3]), 4)
    logits = rng.normal(0, 2, (ROWS, 1)) + np.array([1, -1])
    above = sigmoid(logits)
    return (
        head,
        logits,
        drawn(
            np.stack([1 - above[:, 0], above[:, 0] * (1 - above[:, 1]), above[:, 0] * above[:, 1]], axis=1)
        ),
    )


def matching() -> tuple[Any, np.ndarray, np.ndarray]:
    head = build_task(MatchingTaskConfig(type="matching", inputs=("a", "b"), column="x"), 4)
    logits = rng.normal(0, 2, ROWS)
    ones = np.ones(ROWS)
    outputs = np.stack([np.stack([logits, ones], axis=1), np.stack([ones, ones], axis=1)], axis=1)
    return head, outputs, (rng.random(ROWS) < sigmoid(logits)).astype(np.float32)


@pytest.mark.parametrize("kind", [classification, multi_label, ordinal, matching])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_temperature_recovers_the_scale_of_logits(kind: Any, scale: float) -> None:
    head, outputs, targets = kind()
    scaled = outputs * scale if outputs.ndim == 2 else outputs * np.array([scale, 1])[None, :, None]
    if outputs.ndim == 3:
        scaled[:, 0, -1] = 1  # the mark of presence
    scaled = scaled.astype(np.float32)
    before = head.metrics(scaled, targets)
    assert before["ece"] > 0.05
    assert head.calibrate(scaled, targets) == {"temperature": pytest.approx(scale, rel=0.05)}
    assert float(head.temperature) == pytest.approx(scale, rel=0.05)
    after = head.metrics(scaled, targets)
    assert after["ece"] < 0.015
    same = {"f1_micro", "auc", "map"} & before.keys()  # ordinal: the likeliest class may be another
    assert {name: after[name] for name in same} == pytest.approx({name: before[name] for name in same})
    assert head.details(scaled, targets)["temperature"] == float(head.temperature)
    assert head.calibrate(scaled, targets) == head.calibrate(scaled, targets)


def test_the_temperature_is_1_if_all_predictions_are_correct() -> None:
    head = build_task(ClassificationTaskConfig(type="classification", column="x", classes=["a", "b"]), 4)
    targets = np.array([0.0, 1.0], dtype=np.float32)
    assert head.calibrate(np.eye(2, dtype=np.float32), targets) == {"temperature": 1.0}
    assert head.calibrate(np.zeros((0, 2), dtype=np.float32), targets[:0]) == {"temperature": 1.0}


def test_the_temperature_is_saved_with_the_model(tmp_path: Path) -> None:
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    batch = collate(
        [preprocessor.from_row(row) for row in dataset.splits["validation"]], preprocessor.modalities
    )
    torch.manual_seed(0)
    model = FusedModel(job)
    tiny_jobs.train_steps(model, dataset.splits["train"], job, 20)
    model.eval()
    heads = task_heads(model)
    found = calibrate(heads, collect_raw_outputs(model, heads, [batch]))
    assert list(found) == ["tasks.answer.temperature"]
    [temperature] = found.values()
    assert temperature != 1
    save_model(tmp_path / "model", job, {k: v.detach() for k, v in trainable_state_dict(model).items()}, {})
    _, loaded = load_model(tmp_path / "model")
    assert float(loaded.tasks["answer"].temperature) == pytest.approx(temperature)  # type: ignore[arg-type]
    scored = [
        compute_metrics(task_heads(one), job, collect_outputs(one.eval(), task_heads(one), [batch])[0])
        for one in (loaded, model)
    ]
    assert scored[0] == pytest.approx(scored[1], rel=1e-5)
