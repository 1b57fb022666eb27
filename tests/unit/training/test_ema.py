"""Exponential moving averages of weights."""

import torch
from torch import nn

from rayfuse.training.ema import Ema


def test_the_average_matches_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Ema(model, decay=0.25)
    wanted = 1.0
    for step, value in enumerate([3.0, 7.0, -2.0, 5.0], start=1):
        nn.init.constant_(model.weight, value)
        average.update(step)
        decay = min(0.25, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
        torch.testing.assert_close(average.tensors["weight"].item(), wanted, rtol=1e-6, atol=1e-6)
    assert (1 + 1) / (10 + 1) < 0.25 < (1 + 4) / (10 + 4)


def test_the_model_has_the_average_inside_the_context() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = Ema(model, decay=0.9)
    nn.init.constant_(model.weight, 4.0)
    trained = model.weight.detach().clone()
    with average.average_parameters():
        torch.testing.assert_close(model.weight.detach(), average.tensors["weight"])
        assert not torch.equal(model.weight, trained)
    assert torch.equal(model.weight, trained)
    assert list(average.tensors) == ["weight"]


def test_a_restored_average_continues() -> None:
    model = nn.Linear(2, 2)
    first, second = Ema(model, 0.9), Ema(nn.Linear(2, 2), 0.9)
    nn.init.normal_(model.weight)
    first.update(50)
    second.model = model
    second.restore(first.tensors)
    for average in (first, second):
        average.update(51)
    torch.testing.assert_close(first.tensors, second.tensors, rtol=0, atol=0)
    nn.init.zeros_(model.weight)
    assert first.tensors["weight"].any(), "an average must not be the parameter itself"
