"""Whether training goes on, from the losses alone."""

import json
import math
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from rayfuse.spec.guard import Guard as Options
from rayfuse.train.guard import GO_ON, Guard, Verdict

NAN, INF = math.nan, math.inf


def fed(guard: Guard, losses: list[float], start: int = 1) -> list[Verdict]:
    return [guard.look(step, loss, 1.0) for step, loss in enumerate(losses, start)]


def spiky(**options: Any) -> Guard:
    return Guard(Options(**{"spike": 3, "window": 10, "patience": 2, "skip": 1, **options}))


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_that_is_no_number_stops(loss: float) -> None:
    guard = Guard(Options())
    assert fed(guard, [2.0, 1000.0]) == [GO_ON, GO_ON]
    verdict = guard.look(3, loss, 1.0)
    assert verdict.action == "stop"
    assert str(verdict.error()) == (
        f"the loss is {loss} at step 3; lower train.optimizer.lr, or set train.guard.action: rollback, "
        "which leaves such batches out"
    )


def test_so_does_a_gradient_that_is_none_but_for_fp16_which_scales_it_down() -> None:
    verdict = Guard(Options(), "bf16").look(7, 1.5, INF)
    assert verdict.reason == "the gradient's norm is inf at step 7, where the loss is 1.5"
    assert "set train.precision: fp32" in verdict.remedy
    assert Guard(Options(), "fp16").look(7, 1.5, INF) == GO_ON
    assert Guard(Options(), "fp16").look(7, NAN, INF).action == "stop"
    assert Guard(Options()).look(7, 1.5, None) == GO_ON


def test_the_error_names_rows_and_survives_other_processes() -> None:
    verdict = Guard(Options()).look(1, NAN)
    error = pickle.loads(pickle.dumps(verdict.error([f"a.jsonl:{line}" for line in range(1, 11)])))
    assert "at step 1, on the rows a.jsonl:1, a.jsonl:2," in str(error)
    assert "a.jsonl:8 and 2 more; lower" in str(error)


def test_a_rollback_leaves_out_the_batches_around() -> None:
    guard = Guard(Options(action="rollback", skip=2))
    fed(guard, [1.0] * 9)
    verdict = guard.look(10, NAN)
    assert (verdict.action, verdict.leave_out) == ("roll back", (8, 12))
    assert [step for step in range(1, 20) if guard.skips(step)] == [8, 9, 10, 11, 12]
    assert Guard(Options(action="rollback", skip=2)).look(1, NAN).leave_out == (1, 3)


def test_rollbacks_end() -> None:
    guard = Guard(Options(action="rollback", most=2, skip=0))
    assert [guard.look(step, NAN).action for step in (5, 9, 14)] == ["roll back", "roll back", "stop"]
    assert "2 rollbacks (train.guard.most) were not enough" in guard.look(14, NAN).remedy


def test_an_explosion_is_a_loss_that_stays_far_above_the_recent_ones() -> None:
    guard = spiky()
    usual = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0]
    assert set(fed(guard, [*usual, 9.0, 1.0, 2.9, 2.9])) == {
        GO_ON
    }  # one hard batch, and what is not far above
    verdicts = fed(guard, [9.0, 20.0], 15)
    assert [verdict.action for verdict in verdicts] == ["go on", "stop"]
    assert verdicts[1].reason == (
        "the loss is 20 at step 16, and has been above 3 for 2 steps; before that it was about 1"
    )


def test_a_noisy_loss_needs_more_to_explode() -> None:
    noisy = [0.1, 5.0, 0.2, 4.0, 0.3, 6.0, 0.1, 5.0, 0.2, 4.0]
    assert set(fed(spiky(), [*noisy, 9.0, 9.0])) == {GO_ON}
    assert fed(spiky(), [*noisy, 30.0, 30.0])[-1].action == "stop"


def test_a_negative_loss_may_explode_upward_and_fall_freely() -> None:
    usual = [-2.0, -2.1, -1.9] * 4
    assert set(fed(spiky(), [*usual, -50.0, -50.0, -50.0])) == {GO_ON}
    assert fed(spiky(), [*usual, 2.5, 2.5])[-1].action == "stop"


def test_the_first_steps_are_not_looked_at() -> None:
    assert set(fed(spiky(), [1.0, 1.0, 900.0, 900.0, 900.0])) == {GO_ON}


def test_an_explosion_is_rolled_back_from_where_it_began() -> None:
    guard = spiky(action="rollback")
    verdict = fed(guard, [1.0] * 20 + [9.0, 9.0])[-1]
    assert verdict.leave_out == (20, 23)
    # Done again from a checkpoint at step 15: the same losses are no news, and what was left out stays so.
    assert set(fed(guard, [1.0] * 4, 16)) == {GO_ON}
    assert set(fed(guard, [1.0] * 9, 24)) == {GO_ON}
    assert fed(guard, [9.0, 9.0], 33)[-1].leave_out == (32, 35)


def test_a_restart_from_a_checkpoint_decides_the_same() -> None:
    losses = [1.0, 1.1, 0.9] * 5 + [9.0]
    guard, other = spiky(action="rollback"), spiky(action="rollback")
    guard.look(1, NAN)
    fed(guard, losses, 5)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    assert other.skips(2)
    assert guard.look(21, 9.0) == other.look(21, 9.0)
    assert guard.look(22, NAN).action == "roll back"


@pytest.mark.parametrize("wrong", [{"spike": 1}, {"patience": 0}, {"window": 3}, {"action": "retry"}])
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)
