"""Parameter groups that are trained in a part of a run only."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from rayfuse.errors import SpecError
from rayfuse.spec.optimizers import ParamGroupConfig
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.training_spans import TrainingSpan, check_spans

LINEAR: Any = TypeAdapter(ScheduleConfig).validate_python({"type": "linear", "warmup": 0})


def test_the_schedule_spans_the_steps_of_a_group() -> None:
    whole, late, early = TrainingSpan(), TrainingSpan(0.5), TrainingSpan(0, 2)
    assert [late.lr_factor(LINEAR, step, 8) for step in range(8)] == [0, 0, 0, 0, 1, 0.75, 0.5, 0.25]
    assert [early.lr_factor(LINEAR, step, 8) for step in range(4)] == [1, 0.5, 0, 0]
    assert [whole.lr_factor(LINEAR, step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_a_group_that_is_never_trained_is_rejected() -> None:
    groups = [ParamGroupConfig(pattern="*", lr=0.1), ParamGroupConfig(pattern="*", start=500)]
    check_spans(tuple(groups), 501)
    with pytest.raises(
        SpecError, match=r"param_groups\.1: no step of the 500 of the run is between start 500 and end 1;"
    ):
        check_spans(tuple(groups), 500)
