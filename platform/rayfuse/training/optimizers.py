"""Optimizers: each builds one torch optimizer, which is what DeepSpeed takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rayfuse.spec import optimizers as spec

ParamGroup = dict[str, Any]
"""A parameter group of torch: `params`, their `lr` and `weight_decay`, `matrix`: whether they are inner matrices, and `span`:
the part of the run in which they are trained."""


class Optimizer(ABC):
    """Builds a torch optimizer over parameter groups.

    options: the spec model of a built-in optimizer; the `Options` of a custom one, or the mapping of the spec. Learning
    rate and weight decay are in the groups.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """Return the torch optimizer over `groups`. Its state must be tensors with the shape of their parameter.

        State of another shape works under ZeRO stage 0 alone.
        """


def build_optimizer(options: spec.OptimizerConfig, param_groups: list[ParamGroup]) -> torch.optim.Optimizer:
    """Build the torch optimizer of a spec over parameter groups. Raises SpecError if a custom class cannot be loaded."""
    optimizer: Optimizer = spec.OPTIMIZERS.build(options)
    return optimizer.build(param_groups)


class AdamW(Optimizer):
    """torch's AdamW, fused."""

    options: spec.AdamWConfig

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=self.options.betas, eps=self.options.eps, fused=True)


class SGD(Optimizer):
    """torch's stochastic gradient descent, fused."""

    options: spec.SGDConfig

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups, momentum=self.options.momentum, nesterov=self.options.nesterov, fused=True
        )


class Adafactor(Optimizer):
    """torch's Adafactor."""

    options: spec.AdafactorConfig

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(
            groups, beta2_decay=self.options.beta2_decay, d=self.options.clip_threshold
        )


class Lion(Optimizer):
    """Lion (Chen et al., 2023)."""

    options: spec.LionConfig

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return LionOptimizer(groups, self.options.betas)


class Muon(Optimizer):
    """Muon for inner matrices (Jordan et al., 2024), AdamW for all other parameters."""

    options: spec.MuonConfig

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return MuonWithAdamW(groups, self.options)


def muon_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that Muon optimizes: weights of two dimensions, except of embeddings and task heads."""
    others = {
        part for module in model.modules() if isinstance(module, nn.Embedding) for part in module.parameters()
    }
    others |= set(model.get_submodule("tasks").parameters())
    return {part for part in model.parameters() if part.ndim == 2 and part not in others}


class LionOptimizer(torch.optim.Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay (Chen et al., 2023, program 1).

    State: `exp_avg`, of the weight's shape.
    """

    def __init__(self, params: Iterable[ParamGroup], betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": 1e-4, "weight_decay": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient do not change."""
        for group in self.param_groups:
            parameters = [part for part in group["params"] if part.grad is not None]
            if parameters:
                self._step(parameters, group["lr"], group["weight_decay"], *group["betas"])

    def _step(
        self, parameters: list[torch.Tensor], lr: float, decay: float, beta_update: float, beta_average: float
    ) -> None:
        for part in parameters:
            if not self.state[part]:
                self.state[part]["exp_avg"] = torch.zeros_like(part)
        gradients = [part.grad for part in parameters if part.grad is not None]
        averages = [self.state[part]["exp_avg"] for part in parameters]
        updates = torch._foreach_lerp(gradients, averages, beta_update)
        torch._foreach_sign_(updates)
        torch._foreach_mul_(parameters, 1 - lr * decay)
        torch._foreach_add_(parameters, updates, alpha=-lr)
        torch._foreach_lerp_(averages, gradients, 1 - beta_average)


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for the groups with `matrix`, and its AdamW for the others, as one optimizer.

    Both work on the groups and the state of this one.
    """

    def __init__(self, params: list[ParamGroup], options: spec.MuonConfig) -> None:
        matrices = [group for group in params if group["matrix"]]
        others = [group for group in params if not group["matrix"]]
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self._optimizers.append(
                torch.optim.Muon(
                    matrices,
                    momentum=options.momentum,
                    nesterov=options.nesterov,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self._optimizers.append(
                torch.optim.AdamW(others, betas=options.betas, eps=options.eps, fused=True)
            )
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step of both."""
        for part in self._optimizers:
            matrix = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group["matrix"] == matrix]
            part.state = self.state
            part.step()
