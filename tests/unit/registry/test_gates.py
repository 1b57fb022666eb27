import math

import pytest

from rayfuse.errors import DataError, SpecError
from rayfuse.registry.gates import Case, Measured, Minimum, NotWorse, read_bounds
from rayfuse.registry.versions import Version


def version(number: int, accuracy: float, digest: str = "same", **subsets: float) -> Version:
    return Version(
        name="m",
        version=number,
        metrics={"test": {"answer/accuracy": accuracy, "answer/loss": 1 - accuracy}},
        by_inputs={name.replace("_", "+"): {"answer/accuracy": value} for name, value in subsets.items()},
        metric="answer/accuracy",
        mode="max",
        required=("text",),
        digests={"test": digest},
    )


def test_bounds_from_below_and_for_losses_from_above() -> None:
    case = Case(version(2, 0.9))
    assert Minimum({"answer/accuracy": 0.9, "answer/loss": 0.11}).judge(case).passed
    verdict = Minimum({"answer/accuracy": 0.95, "answer/loss": 0.05}).judge(case)
    assert not verdict.passed
    assert verdict.reason == (
        "answer/accuracy 0.9000 is below 0.95, answer/loss 0.1000 is above 0.05 on the test rows"
    )


def test_nan_reaches_no_bound() -> None:
    assert not Minimum({"answer/accuracy": 0.0}).judge(Case(version(2, math.nan))).passed
    assert not NotWorse().judge(Case(version(2, math.nan), version(1, 0.5))).passed


def test_a_bound_on_an_unknown_metric_names_the_near_one() -> None:
    with pytest.raises(SpecError, match="did you mean answer/accuracy"):
        Minimum({"answer/acuracy": 0.5}).judge(Case(version(2, 0.9)))
    with pytest.raises(SpecError, match="write --min METRIC=BOUND"):
        read_bounds(["answer/accuracy>0.9"])


def test_without_a_champion_nothing_is_worse() -> None:
    verdict = NotWorse().judge(Case(version(1, 0.1)))
    assert (verdict.passed, verdict.reason) == (True, "no champion yet")


def test_worse_by_less_than_the_tolerance_passes() -> None:
    assert NotWorse(0.01).judge(Case(version(2, 0.895), version(1, 0.9))).passed
    verdict = NotWorse(0.001).judge(Case(version(2, 0.895), version(1, 0.9)))
    assert not verdict.passed
    assert "answer/accuracy 0.8950 against 0.9000 (tolerance 0.001" in verdict.reason


def test_worse_with_a_subset_that_callers_may_send_is_refused() -> None:
    candidate, champion = (
        version(2, 0.95, image_text=0.95, text=0.5),
        version(1, 0.9, image_text=0.9, text=0.6),
    )
    verdict = NotWorse().judge(Case(candidate, champion))
    assert not verdict.passed
    assert "0.5000 against 0.6000 with text only" in verdict.reason


def test_a_subset_without_a_required_input_is_recorded_only() -> None:
    candidate, champion = version(2, 0.95, text=0.6, image=0.1), version(1, 0.9, text=0.6, image=0.5)
    verdict = NotWorse().judge(Case(candidate, champion))
    assert verdict.passed
    assert verdict.numbers["compared"]["image"] == {"candidate": 0.1, "champion": 0.5}


def test_other_rows_mean_that_the_champion_is_measured_now() -> None:
    asked = []

    def measure() -> Measured:
        asked.append(1)
        return Measured({"answer/accuracy": 0.4}, {})

    candidate = version(2, 0.5, digest="new")
    verdict = NotWorse().judge(Case(candidate, version(1, 0.9, digest="old"), measure))
    assert verdict.passed
    assert asked
    assert verdict.numbers["champion_measured"] == "measured now on the candidate's rows"
    assert not NotWorse().judge(Case(version(2, 0.5), version(1, 0.9), measure)).passed
    assert len(asked) == 1


def test_a_champion_that_cannot_be_measured_refuses_with_the_reason() -> None:
    def measure() -> Measured:
        raise DataError("test.jsonl: no column `clip`")

    verdict = NotWorse().judge(Case(version(2, 0.99, digest="new"), version(1, 0.5, digest="old"), measure))
    assert not verdict.passed
    assert "no column `clip`" in verdict.reason


def test_less_is_better_for_a_loss() -> None:
    def by_loss(number: int, loss: float) -> Version:
        return Version(
            "m", number, metrics={"test": {"loss": loss}}, metric="loss", mode="min", digests={"test": "x"}
        )

    assert NotWorse(0.01).judge(Case(by_loss(2, 0.2), by_loss(1, 0.5))).passed
    assert not NotWorse(0.01).judge(Case(by_loss(2, 0.5), by_loss(1, 0.2))).passed


def test_models_that_answer_different_tasks_cannot_be_compared() -> None:
    other = Version("m", 1, metrics={"test": {"price/mae": 3.0}}, digests={"test": "same"})
    verdict = NotWorse().judge(Case(version(2, 0.9), other))
    assert not verdict.passed
    assert "the champion (version 1) does not report answer/accuracy" in verdict.reason
