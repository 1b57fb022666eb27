"""Optimizers that a job may name, each as one torch optimizer, which is what DeepSpeed takes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rayfuse.spec import optimizers as spec

Group = dict[str, Any]
"""A parameter group of torch: `params`, their `lr` and `weight_decay`, and `matrix`: whether Muon takes them."""


def build_optimizer(options: Any, groups: list[Group]) -> torch.optim.Optimizer:
    """The optimizer of a spec over groups of parameters, which have rates of their own."""
    return OPTIMIZERS[options.type](options, groups)


def _adamw(options: spec.AdamW, groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=True)


def _sgd(options: spec.SGD, groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, fused=True)


def _adafactor(options: spec.Adafactor, groups: list[Group]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, beta2_decay=options.beta2_decay, d=options.clip)


def _lion(options: spec.Lion, groups: list[Group]) -> torch.optim.Optimizer:
    return Lion(groups, options.betas)


def _muon(options: spec.Muon, groups: list[Group]) -> torch.optim.Optimizer:
    return Muon(groups, options)


OPTIMIZERS: dict[str, Callable[[Any, list[Group]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}


def matrices(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that Muon is for: weights of two dimensions, but neither embeddings nor those of task heads."""
    others = {
        part for module in model.modules() if isinstance(module, nn.Embedding) for part in module.parameters()
    }
    others |= set(model.get_submodule("tasks").parameters())
    return {part for part in model.parameters() if part.ndim == 2 and part not in others}


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay (Chen et al., 2023, program 1).

    State: `exp_avg`, of the weight's shape.
    """

    def __init__(self, groups: Iterable[Group], betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": 1e-4, "weight_decay": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
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


class Muon(torch.optim.Optimizer):
    """torch's Muon for the groups marked as `matrix` and its AdamW for the others, as one optimizer.

    Both work on this optimizer's own groups and state.
    """

    def __init__(self, groups: list[Group], options: spec.Muon) -> None:
        of_matrices = [group for group in groups if group["matrix"]]
        others = [group for group in groups if not group["matrix"]]
        self._parts: list[torch.optim.Optimizer] = []
        if of_matrices:
            self._parts.append(
                torch.optim.Muon(
                    of_matrices,
                    momentum=options.momentum,
                    nesterov=options.nesterov,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=options.betas, eps=options.eps, fused=True))
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both."""
        for part in self._parts:
            matrix = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group["matrix"] == matrix]
            part.state = self.state
            part.step()
