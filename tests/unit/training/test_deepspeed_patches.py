"""Contract of the patches with the installed DeepSpeed: what they change exists, and has the effect they rely on."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfuse.errors import RayfuseError
from rayfuse.training.deepspeed_patches import (
    PATCHED_ATTRIBUTES,
    check_version,
    disable_shared_memory_allreduce,
    link_optimizer_states,
    optimize_stage_zero,
)


@pytest.fixture(scope="module")
def process_group(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch_module.setenv(name, value)
    disable_shared_memory_allreduce()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def make_engine(stage: int) -> Any:
    import deepspeed

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    groups = [{"params": list(layer.parameters())} for layer in model]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 0.5,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    return engine


def take_step(engine: Any) -> None:
    engine.backward(engine(torch.ones(2, 4)).square().mean())
    engine.step()


@pytest.mark.usefixtures("process_group")
def test_the_installed_deepspeed_has_all_patched_attributes() -> None:
    import deepspeed.ops

    targets = {
        "module": deepspeed.ops,
        "engine": make_engine(0),
        "zero_1_2_optimizer": make_engine(2).optimizer,
        "zero_3_optimizer": make_engine(3).optimizer,
    }
    assert targets.keys() == PATCHED_ATTRIBUTES.keys()
    for kind, target in targets.items():
        missing = [name for name in PATCHED_ATTRIBUTES[kind] if not hasattr(target, name)]
        assert not missing, kind


@pytest.mark.usefixtures("process_group")
def test_stage_zero_learns_the_same_and_keeps_the_gradient_norm() -> None:
    plain, patched = make_engine(0), make_engine(0)
    optimize_stage_zero(patched, world_size=1)
    plain_module, patched_module = plain.module, patched.module
    patched_module(torch.ones(2, 4)).square().mean().backward()
    norm = torch.stack([p.grad.norm() for p in patched_module.parameters()]).norm()
    patched.zero_grad()
    for engine in (plain, patched):
        take_step(engine)
    torch.testing.assert_close(patched.get_global_grad_norm(), norm)
    assert plain.get_global_grad_norm() is None  # DeepSpeed discards it: the reason for the patch
    torch.testing.assert_close(patched_module.state_dict(), plain_module.state_dict())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("stage", [1, 2])
def test_linked_states_cover_all_parameter_groups(stage: int) -> None:
    from deepspeed.utils import safe_get_full_optimizer_state

    engine = make_engine(stage)
    take_step(engine)
    link_optimizer_states(engine)
    states = [safe_get_full_optimizer_state(p, "exp_avg") for p in engine.module.parameters()]
    assert all(state is not None and bool(state.any()) for state in states)


def test_a_missing_attribute_is_an_error_with_the_remedy() -> None:
    engine: Any = SimpleNamespace(module=torch.nn.Linear(1, 1), zero_grad=lambda: None)
    with pytest.raises(
        RayfuseError, match=r"has no _global_grad_norm, .*clip_fp32.*; install deepspeed>=0.19.8,<0.20.0"
    ):
        optimize_stage_zero(engine, world_size=1)


@pytest.mark.parametrize(
    ("installed", "warned"),
    [("0.19.8", False), ("0.19.12+cpu", False), ("0.19.7", True), ("0.20.0", True), ("1.0.0rc1", True)],
)
def test_other_versions_are_warned_about(
    installed: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_version(installed)
    expected = f"DeepSpeed {installed} is not tested with Rayfuse; install deepspeed>=0.19.8,<0.20.0"
    assert (expected in caplog.text) is warned
