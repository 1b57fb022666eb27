"""The gradient's norm, from engines of all stages."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfuse.train.gradients import gradient_norm, keep_gradient_norm


def engine_of(stage: int, norm: Any = None) -> Any:
    engine = SimpleNamespace(
        module=torch.nn.Linear(2, 1, bias=False),
        zero_optimization_stage=lambda: stage,
        gradient_clipping=lambda: 1.0,
        _global_grad_norm=norm,
    )
    engine.get_global_grad_norm = lambda: engine._global_grad_norm
    keep_gradient_norm(engine)
    return engine


def test_without_zero_the_norm_is_that_before_clipping() -> None:
    engine = engine_of(0)
    assert gradient_norm(engine) is None
    engine.module.weight.grad = torch.tensor([[3.0, 4.0]])
    engine.clip_fp32_gradients()
    assert float(gradient_norm(engine)) == 5.0
    assert engine.module.weight.grad.norm() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_keeps_it_itself(stage: int) -> None:
    engine = engine_of(stage, 0.5)
    assert gradient_norm(engine) == 0.5
    assert not hasattr(engine, "clip_fp32_gradients")
