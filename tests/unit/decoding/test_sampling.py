"""Distributions that tokens are sampled from."""

import math
from collections import Counter

import pytest
import torch

from rayfuse.decoding.request import SamplingParams
from rayfuse.decoding.sampling import Sampler
from rayfuse.errors import InvalidInputError

PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.1])
DRAWS = 3000


def frequencies(**params):
    sampler = Sampler(SamplingParams(seed=0, **params))
    counts = Counter(sampler.choose(PROBABILITIES.log()) for _ in range(DRAWS))
    return [counts[token] / DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"temperature": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.725, 0.181, 0.065, 0.029]),
        ({"temperature": 1.0, "top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.76}, [0.556, 0.278, 0.167, 0]),
        ({"temperature": 1.0, "top_p": 0.5, "top_k": 3}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_frequencies_follow_the_parameters(params, wanted):
    assert frequencies(**params) == pytest.approx(wanted, abs=0.03)


def test_top_p_reaches_beyond_the_first_candidates():
    logits = torch.zeros(5000)
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.9, seed=0))
    drawn = {sampler.choose(logits) for _ in range(500)}
    assert len(drawn) > 400


def test_masked_tokens_are_never_drawn():
    logits = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    for params in ({}, {"top_p": 0.99}, {"top_k": 4}):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=0, **params))
        assert {sampler.choose(logits) for _ in range(200)} == {0, 2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed; it must be at least 1"),
        ({"temperature": -1.0}, "temperature: -1.0 is not allowed"),
        ({"temperature": math.nan}, "temperature: nan is not allowed"),
        ({"top_p": 0.0}, "top_p: 0.0 is not allowed"),
        ({"top_k": -1}, "top_k: -1 is not allowed"),
        ({"stop": ("",)}, "stop: \\[''\\] is not allowed"),
        ({"top_logprobs": 21}, "top_logprobs: 21 is not allowed; it must be between 0 and 20"),
    ],
)
def test_parameters_out_of_range_are_named(params, message):
    with pytest.raises(InvalidInputError, match=message):
        SamplingParams(**params)
