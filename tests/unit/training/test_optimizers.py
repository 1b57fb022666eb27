"""Every optimizer: its steps, and restoring its state by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rayfuse.errors import DataError
from rayfuse.spec.optimizers import OPTIMIZERS, OptimizerConfig
from rayfuse.training.optimizer_state import gather_optimizer_state, restore_optimizer_state
from rayfuse.training.optimizers import build_optimizer, muon_parameters
from rayfuse.training.state import copy_to_cpu

KEPT = {
    "adamw": {"exp_avg", "exp_avg_sq", "step"},
    "sgd": {"momentum_buffer"},
    "adafactor": {"row_var", "col_var", "variance", "step"},
    "lion": {"exp_avg"},
    "muon": {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"},
}


class Model(torch.nn.Module):
    """Module named like a FusedModel; `unused` gets no gradient, as some weights of pretrained models."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(5, 3)
        self.inner, self.unused = torch.nn.Linear(3, 4), torch.nn.Linear(2, 2)
        self.tasks = torch.nn.ModuleDict({"answer": torch.nn.Linear(4, 2)})

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.tasks["answer"](self.inner(self.words(words)).tanh())


def options_of(kind: str, **options: Any) -> Any:
    return TypeAdapter(OptimizerConfig).validate_python({"type": kind, **options})


def engine_of(options: Any) -> Any:
    torch.manual_seed(0)
    model = Model()
    found = muon_parameters(model)
    groups = [
        {
            "params": [part for part in model.parameters() if (part in found) == matrix],
            "lr": options.lr,
            "weight_decay": options.weight_decay,
            "matrix": matrix,
        }
        for matrix in (False, True)
    ]
    optimizer = build_optimizer(options, groups)
    return SimpleNamespace(module=model, optimizer=optimizer, zero_optimization_stage=lambda: 0, device="cpu")


def take_step(engine: Any, words: tuple[int, ...] = (0, 1, 4)) -> None:
    engine.optimizer.zero_grad()
    engine.module(torch.tensor(words)).square().sum().backward()
    engine.optimizer.step()


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_optimizer_takes_the_same_steps(kind: str) -> None:
    first = engine_of(options_of(kind))
    for _ in range(3):
        take_step(first)
    weights, state = weights_of(first), copy_to_cpu(gather_optimizer_state(first))
    assert {name.partition("/")[0] for name in state} == KEPT[kind]
    assert state.get("step", torch.tensor(3.0)).max() == 3
    assert not any(name.endswith("unused.weight") for name in state)

    second = engine_of(options_of(kind))
    restore_optimizer_state(second, state, lambda: take_step(second, (2,)))
    second.module.load_state_dict(weights)  # as the step that makes the state must change nothing
    for engine in (first, second):
        take_step(engine, (3, 2))
    torch.testing.assert_close(weights_of(first), weights_of(second), rtol=0, atol=0)
    torch.testing.assert_close(
        copy_to_cpu(gather_optimizer_state(first)),
        copy_to_cpu(gather_optimizer_state(second)),
        rtol=0,
        atol=0,
    )


def test_there_is_no_state_before_the_first_step() -> None:
    engine = engine_of(options_of("adamw"))
    assert copy_to_cpu(gather_optimizer_state(engine)) == {}
    restore_optimizer_state(engine, {}, lambda: pytest.fail("took a step"))


def test_state_of_another_optimizer_is_rejected() -> None:
    lion, adamw = engine_of(options_of("lion")), engine_of(options_of("adamw"))
    take_step(lion)
    with pytest.raises(
        DataError, match=r"no exp_avg_sq of words.weight, so it was written with another optimizer"
    ):
        restore_optimizer_state(adamw, copy_to_cpu(gather_optimizer_state(lion)), lambda: take_step(adamw))


def test_lion_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.5, "matrix": False}
    optimizer = build_optimizer(options_of("lion", betas=(0.9, 0.5)), [group])
    weight.grad = torch.tensor([4.0, -1.0, 0.0])
    optimizer.step()  # 0.95 of each, less 0.1 times the signs 1, -1, 0
    assert weight.tolist() == pytest.approx([0.85, -1.8, 2.85])
    assert optimizer.state[weight]["exp_avg"].tolist() == [2.0, -0.5, 0.0]
    weight.grad = torch.tensor([-1.0, 10.0, -1.0])  # 0.9 × 2 - 0.1 × 1 is above zero still
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.85 * 0.95 - 0.1, -1.8 * 0.95 - 0.1, 2.85 * 0.95 + 0.1])


def test_muon_takes_inner_matrices_and_adamw_the_rest() -> None:
    engine = engine_of(options_of("muon", lr=0.02))
    model = engine.module
    assert muon_parameters(model) == {model.inner.weight, model.unused.weight}
    twin = Model()
    twin.load_state_dict(model.state_dict())
    muon = torch.optim.Muon([twin.inner.weight], lr=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    others = [part for part in twin.parameters() if part is not twin.inner.weight]
    adamw = torch.optim.AdamW(others, lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        take_step(engine)
        twin(torch.tensor([0, 1, 4])).square().sum().backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        for group in (*engine.optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] *= 0.5  # as a schedule does
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
