"""Exponential moving average of the trained tensors: what is evaluated and kept (Polyak and Juditsky, 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from rayfuse.model.fused import trainable_parameters


class Average:
    """The average of a model's trainable parameters, float32; every worker keeps the same.

    The model's parameters must be whole on this worker, so not under ZeRO stage 3.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.restore(trainable_parameters(model))

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from an average kept earlier."""
        self.tensors = {
            name: tensors[name].detach().to(parameter.device, torch.float32, copy=True)
            for name, parameter in trainable_parameters(self.model).items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimizer step `step`, counted from 1.

        average ← d · average + (1 - d) · parameters, with d = min(decay, (1 + step) / (10 + step)), so that what
        the model was before it learned anything is soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in trainable_parameters(self.model).items():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averaged parameters; the trained ones come back in the end, bit for bit."""
        parameters = trainable_parameters(self.model)
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in trainable_parameters(self.model).items():
            parameter.copy_(tensors[name])
