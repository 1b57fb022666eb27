import math
from typing import Any

import pytest

from rayfuse.errors import DataError, SpecError
from rayfuse.registry.gates import (
    GateContext,
    MetricThreshold,
    ModelMetrics,
    NoRegression,
    default_gates,
    parse_gate,
)
from rayfuse.registry.versions import ModelVersion
from rayfuse.spec.gates import MetricThresholdConfig, NoRegressionConfig


def version(number: int, accuracy: float, digest: str = "same", **subsets: float) -> ModelVersion:
    return ModelVersion(
        name="m",
        version=number,
        metrics={"test": {"answer/accuracy": accuracy, "answer/loss": 1 - accuracy}},
        by_inputs={name.replace("_", "+"): {"answer/accuracy": value} for name, value in subsets.items()},
        selection_metric="answer/accuracy",
        mode="max",
        metric_modes={"answer/accuracy": "max", "answer/loss": "min"},
        required_inputs=("text",),
        digests={"test": digest},
    )


def test_bounds_from_below_and_for_losses_from_above() -> None:
    case = GateContext(version(2, 0.9))
    assert (
        MetricThreshold(MetricThresholdConfig(thresholds={"answer/accuracy": 0.9, "answer/loss": 0.11}))
        .evaluate(case)
        .passed
    )
    verdict = MetricThreshold(
        MetricThresholdConfig(thresholds={"answer/accuracy": 0.95, "answer/loss": 0.05})
    ).evaluate(case)
    assert not verdict.passed
    assert verdict.reason == (
        "answer/accuracy 0.9000 is below 0.95, answer/loss 0.1000 is above 0.05 on the test rows"
    )


def test_nan_reaches_no_bound() -> None:
    assert (
        not MetricThreshold(MetricThresholdConfig(thresholds={"answer/accuracy": 0.0}))
        .evaluate(GateContext(version(2, math.nan)))
        .passed
    )
    assert (
        not NoRegression(NoRegressionConfig())
        .evaluate(GateContext(version(2, math.nan), version(1, 0.5)))
        .passed
    )


def test_a_bound_on_an_unknown_metric_suggests_a_similar_one() -> None:
    with pytest.raises(SpecError, match="did you mean answer/accuracy"):
        MetricThreshold(MetricThresholdConfig(thresholds={"answer/acuracy": 0.5})).evaluate(
            GateContext(version(2, 0.9))
        )


def test_without_a_champion_nothing_is_worse() -> None:
    verdict = NoRegression(NoRegressionConfig()).evaluate(GateContext(version(1, 0.1)))
    assert (verdict.passed, verdict.reason) == (True, "no champion yet")


def test_worse_by_less_than_the_tolerance_passes() -> None:
    assert (
        NoRegression(NoRegressionConfig(tolerance=0.01))
        .evaluate(GateContext(version(2, 0.895), version(1, 0.9)))
        .passed
    )
    verdict = NoRegression(NoRegressionConfig(tolerance=0.001)).evaluate(
        GateContext(version(2, 0.895), version(1, 0.9))
    )
    assert not verdict.passed
    assert "answer/accuracy 0.8950 against 0.9000 (tolerance 0.001" in verdict.reason


def test_a_worse_subset_of_inputs_is_rejected() -> None:
    candidate, champion = (
        version(2, 0.95, image_text=0.95, text=0.5),
        version(1, 0.9, image_text=0.9, text=0.6),
    )
    verdict = NoRegression(NoRegressionConfig()).evaluate(GateContext(candidate, champion))
    assert not verdict.passed
    assert "0.5000 against 0.6000 with text only" in verdict.reason


def test_a_subset_without_a_required_input_is_recorded_only() -> None:
    candidate, champion = version(2, 0.95, text=0.6, image=0.1), version(1, 0.9, text=0.6, image=0.5)
    verdict = NoRegression(NoRegressionConfig()).evaluate(GateContext(candidate, champion))
    assert verdict.passed
    assert verdict.details["compared"]["image"] == {"candidate": 0.1, "champion": 0.5}


def test_the_champion_is_evaluated_if_the_rows_differ() -> None:
    calls = []

    def measure() -> ModelMetrics:
        calls.append(1)
        return ModelMetrics({"answer/accuracy": 0.4}, {})

    candidate = version(2, 0.5, digest="new")
    verdict = NoRegression(NoRegressionConfig()).evaluate(
        GateContext(candidate, version(1, 0.9, digest="old"), measure)
    )
    assert verdict.passed
    assert calls
    assert verdict.details["champion_metrics_source"] == "evaluated now on the candidate's rows"
    assert (
        not NoRegression(NoRegressionConfig())
        .evaluate(GateContext(version(2, 0.5), version(1, 0.9), measure))
        .passed
    )
    assert len(calls) == 1


def test_a_champion_that_cannot_be_evaluated_is_a_rejection() -> None:
    def measure() -> ModelMetrics:
        raise DataError("test.jsonl: no column `clip`")

    verdict = NoRegression(NoRegressionConfig()).evaluate(
        GateContext(version(2, 0.99, digest="new"), version(1, 0.5, digest="old"), measure)
    )
    assert not verdict.passed
    assert "no column `clip`" in verdict.reason


def test_lower_losses_are_better() -> None:
    def by_loss(number: int, loss: float) -> ModelVersion:
        return ModelVersion(
            "m",
            number,
            metrics={"test": {"loss": loss}},
            selection_metric="loss",
            mode="min",
            digests={"test": "x"},
        )

    assert (
        NoRegression(NoRegressionConfig(tolerance=0.01))
        .evaluate(GateContext(by_loss(2, 0.2), by_loss(1, 0.5)))
        .passed
    )
    assert (
        not NoRegression(NoRegressionConfig(tolerance=0.01))
        .evaluate(GateContext(by_loss(2, 0.5), by_loss(1, 0.2)))
        .passed
    )


def test_models_with_different_tasks_cannot_be_compared() -> None:
    other = ModelVersion("m", 1, metrics={"test": {"price/mae": 3.0}}, digests={"test": "same"})
    verdict = NoRegression(NoRegressionConfig()).evaluate(GateContext(version(2, 0.9), other))
    assert not verdict.passed
    assert "the champion (version 1) does not report answer/accuracy" in verdict.reason


def test_default_gates_are_replaced_by_those_of_their_type() -> None:
    gates = default_gates(
        {"answer/accuracy": 0.9}, 0.01, [parse_gate('{"type": "no_regression", "tolerance": 0.5}')]
    )
    assert [gate.options for gate in gates] == [
        MetricThresholdConfig(thresholds={"answer/accuracy": 0.9}),
        NoRegressionConfig(tolerance=0.5),
    ]


def test_invalid_values_of_default_gates() -> None:
    with pytest.raises(SpecError, match=r"gate .*: thresholds.answer/accuracy: must be a number, not 'high'"):
        default_gates({"answer/accuracy": "high"}, 0.01)  # type: ignore[dict-item]
    with pytest.raises(SpecError, match=r"gate .*: tolerance: must be at least 0, not -1"):
        default_gates({}, -1)


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ("foo", "gate foo: unknown type `foo`; one of: metric_threshold, no_regression"),
        ("{", "gate {: not JSON: Expecting property name enclosed in double quotes at character 1"),
        (
            {"type": "no_regresion"},
            "gate {'type': 'no_regresion'}: unknown type `no_regresion`; did you mean no_regression?",
        ),
    ],
)
def test_invalid_gates(gate: Any, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_gate(gate)
    assert str(caught.value) == problem
