"""Decisions on NaN losses and loss spikes."""

import json
import math
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from rayfuse.spec.loss_guard import LossGuardConfig
from rayfuse.training.loss_guard import CONTINUE, GuardDecision, LossGuard

NAN, INF = math.nan, math.inf


def fed(loss_guard: LossGuard, losses: list[float], start: int = 1) -> list[GuardDecision]:
    return [loss_guard.check(step, loss, 1.0) for step, loss in enumerate(losses, start)]


def spiky(**options: Any) -> LossGuard:
    return LossGuard(
        LossGuardConfig(**{"spike_factor": 3, "window": 10, "patience": 2, "skip_batches": 1, **options})
    )


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_nan_or_infinite_loss_stops(loss: float) -> None:
    guard = LossGuard(LossGuardConfig())
    assert fed(guard, [2.0, 1000.0]) == [CONTINUE, CONTINUE]
    decision = guard.check(3, loss, 1.0)
    assert decision.action == "stop"
    assert str(decision.to_error()) == (
        f"the loss is {loss} at step 3; lower train.optimizer.lr, or set train.loss_guard.action: rollback "
        "to skip such batches"
    )


def test_an_infinite_gradient_stops_except_with_fp16() -> None:
    decision = LossGuard(LossGuardConfig(), "bf16").check(7, 1.5, INF)
    assert decision.reason == "the gradient norm is inf at step 7, where the loss is 1.5"
    assert "set train.precision: fp32" in decision.remedy
    assert LossGuard(LossGuardConfig(), "fp16").check(7, 1.5, INF) == CONTINUE
    assert LossGuard(LossGuardConfig(), "fp16").check(7, NAN, INF).action == "stop"
    assert LossGuard(LossGuardConfig()).check(7, 1.5, None) == CONTINUE


def test_the_error_names_rows_and_pickles() -> None:
    decision = LossGuard(LossGuardConfig()).check(1, NAN)
    error = pickle.loads(pickle.dumps(decision.to_error([f"a.jsonl:{line}" for line in range(1, 11)])))
    assert "at step 1, on the rows a.jsonl:1, a.jsonl:2," in str(error)
    assert "a.jsonl:8 and 2 more; lower" in str(error)


def test_a_rollback_skips_the_batches_around() -> None:
    guard = LossGuard(LossGuardConfig(action="rollback", skip_batches=2))
    fed(guard, [1.0] * 9)
    decision = guard.check(10, NAN)
    assert (decision.action, decision.skip_steps) == ("rollback", (8, 12))
    assert [step for step in range(1, 20) if guard.should_skip(step)] == [8, 9, 10, 11, 12]
    assert LossGuard(LossGuardConfig(action="rollback", skip_batches=2)).check(1, NAN).skip_steps == (1, 3)


def test_rollbacks_are_limited() -> None:
    guard = LossGuard(LossGuardConfig(action="rollback", max_rollbacks=2, skip_batches=0))
    assert [guard.check(step, NAN).action for step in (5, 9, 14)] == ["rollback", "rollback", "stop"]
    assert "2 rollbacks (train.loss_guard.max_rollbacks) were not enough" in guard.check(14, NAN).remedy


def test_a_spike_is_a_loss_that_stays_far_above_the_recent_ones() -> None:
    guard = spiky()
    usual = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0]
    assert set(fed(guard, [*usual, 9.0, 1.0, 2.9, 2.9])) == {
        CONTINUE
    }  # one hard batch, and what is not far above
    decisions = fed(guard, [9.0, 20.0], 15)
    assert [decision.action for decision in decisions] == ["continue", "stop"]
    assert decisions[1].reason == (
        "the loss is 20 at step 16 and above 3 for 2 steps; its median before is 1"
    )


def test_a_noisy_loss_has_a_higher_threshold() -> None:
    noisy = [0.1, 5.0, 0.2, 4.0, 0.3, 6.0, 0.1, 5.0, 0.2, 4.0]
    assert set(fed(spiky(), [*noisy, 9.0, 9.0])) == {CONTINUE}
    assert fed(spiky(), [*noisy, 30.0, 30.0])[-1].action == "stop"


def test_a_negative_loss_spikes_upward_only() -> None:
    usual = [-2.0, -2.1, -1.9] * 4
    assert set(fed(spiky(), [*usual, -50.0, -50.0, -50.0])) == {CONTINUE}
    assert fed(spiky(), [*usual, 2.5, 2.5])[-1].action == "stop"


def test_the_first_steps_have_no_threshold() -> None:
    assert set(fed(spiky(), [1.0, 1.0, 900.0, 900.0, 900.0])) == {CONTINUE}


def test_a_spike_is_rolled_back_from_its_first_step() -> None:
    guard = spiky(action="rollback")
    decision = fed(guard, [1.0] * 20 + [9.0, 9.0])[-1]
    assert decision.skip_steps == (20, 23)
    # Repeated from a checkpoint at step 15: the same losses continue, and skipped steps stay skipped.
    assert set(fed(guard, [1.0] * 4, 16)) == {CONTINUE}
    assert set(fed(guard, [1.0] * 9, 24)) == {CONTINUE}
    assert fed(guard, [9.0, 9.0], 33)[-1].skip_steps == (32, 35)


def test_a_restart_from_a_checkpoint_decides_the_same() -> None:
    losses = [1.0, 1.1, 0.9] * 5 + [9.0]
    guard, other = spiky(action="rollback"), spiky(action="rollback")
    guard.check(1, NAN)
    fed(guard, losses, 5)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert other.state_dict() == guard.state_dict()
    assert other.should_skip(2)
    assert guard.check(21, 9.0) == other.check(21, 9.0)
    assert guard.check(22, NAN).action == "rollback"


@pytest.mark.parametrize("wrong", [{"spike_factor": 1}, {"patience": 0}, {"window": 3}, {"action": "retry"}])
def test_invalid_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossGuardConfig(**wrong)
