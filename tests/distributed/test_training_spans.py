"""Parameter groups that are trained in a part of a run only, under every ZeRO stage."""

from typing import Any

import ranks
import torch
from pydantic import TypeAdapter

from rayfuse.spec.optimizers import OptimizerConfig
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.optimizers import build_optimizer
from rayfuse.training.training_spans import TrainingSpan

STEPS, NORM = 8, 0.05
SPANS = (TrainingSpan(), TrainingSpan(3), TrainingSpan(0, 6))


def make_layers() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))


def optimizer_of(kind: str, layers: Any, spans: Any) -> torch.optim.Optimizer:
    """Return an optimizer with a group for each layer."""
    options: Any = TypeAdapter(OptimizerConfig).validate_python({"type": kind})
    rates = {"lr": 0.1, "base_lr": 0.1, "weight_decay": 0.1, "base_weight_decay": 0.1, "matrix": False}
    groups = [
        {"params": list(layer.parameters()), "span": span, **rates}
        for layer, span in zip(layers, spans, strict=True)
    ]
    return build_optimizer(options, groups)


def loss_of(layers: Any, step: int) -> torch.Tensor:
    batch = torch.randn(2, 4, generator=torch.Generator().manual_seed(step))
    return layers(batch).square().mean()


def expected_weights(kind: str) -> list[list[torch.Tensor]]:
    """Return the weights after each step of separate optimizers, which exist in the span of their layer only."""
    layers = make_layers()
    optimizers: dict[int, Any] = {}
    found = []
    for step in range(STEPS):
        layers.zero_grad()
        loss_of(layers, step).backward()
        active = [number for number, span in enumerate(SPANS) if step in span.steps(STEPS)]
        torch.nn.utils.clip_grad_norm_(
            [part for number in active for part in layers[number].parameters()], NORM
        )
        for number in active:
            if number not in optimizers:
                optimizers[number] = optimizer_of(kind, [layers[number]], [TrainingSpan()])
            optimizers[number].step()
        found.append([part.detach().clone() for part in layers.parameters()])
    return found


def engine_of(kind: str, stage: int, layers: Any, world: int) -> Any:
    import deepspeed

    from rayfuse.training.deepspeed_patches import optimize_stage_zero
    from rayfuse.training.training_spans import apply_spans

    optimizer = optimizer_of(kind, layers, SPANS)
    apply_spans(optimizer)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": NORM,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=layers, optimizer=optimizer, config=config)
    if stage == 0:
        optimize_stage_zero(engine, world)
    return engine


def _train(rank: int, world: int, variants: dict[str, tuple[int, ...]]) -> None:
    """Train with each optimizer and stage, with the same batches on all ranks, and compare the weights after each step."""
    import deepspeed

    from rayfuse.training.deepspeed_patches import disable_shared_memory_allreduce
    from rayfuse.training.engine import set_learning_rates

    disable_shared_memory_allreduce()
    schedule: Any = TypeAdapter(ScheduleConfig).validate_python({"type": "constant", "warmup": 0})
    for kind, stage in ((kind, stage) for kind, stages in variants.items() for stage in stages):
        wanted, layers = expected_weights(kind), make_layers()
        engine = engine_of(kind, stage, layers, world)
        for step in range(STEPS):
            set_learning_rates(engine, schedule, step, STEPS)
            engine.backward(loss_of(engine, step))
            engine.step()
            place = f"{kind}, stage {stage}, step {step}"
            with deepspeed.zero.GatheredParameters(list(layers.parameters()), enabled=stage == 3):
                for mine, other in zip(layers.parameters(), wanted[step], strict=True):
                    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=place)


def test_groups_start_as_in_a_new_run_and_stop() -> None:
    ranks.spawn(_train, 2, {"adamw": (0, 1, 2, 3), "sgd": (0, 2), "lion": (3,), "adafactor": (0,)})
