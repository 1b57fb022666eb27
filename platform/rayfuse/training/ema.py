"""Exponential moving average (EMA) of trainable parameters, which is evaluated and exported (Polyak and Juditsky, 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from rayfuse.model.fused import trainable_parameters


class Ema:
    """Average of a model's trainable parameters, float32, the same on every rank.

    The model must have full parameters on this rank, so it does not work under ZeRO stage 3.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.restore(trainable_parameters(model))

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from a saved average."""
        self.tensors = {
            name: tensors[name].detach().to(parameter.device, torch.float32, copy=True)
            for name, parameter in trainable_parameters(self.model).items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the parameters after optimizer step `step`, counted from 1.

        average ← d · average + (1 - d) · parameters, with d = min(decay, (1 + step) / (10 + step)), so that the
        initial parameters lose their weight quickly.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in trainable_parameters(self.model).items():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Return a context in which the model has the averaged parameters; it restores the trained ones bit for bit."""
        parameters = trainable_parameters(self.model)
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._copy_to_model(self.tensors)
        try:
            yield
        finally:
            self._copy_to_model(trained)

    @torch.no_grad()
    def _copy_to_model(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in trainable_parameters(self.model).items():
            parameter.copy_(tensors[name])
