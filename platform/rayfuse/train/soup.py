"""Greedy soup: the average of the best checkpoints, as far as averaging helps (Wortsman et al., 2022)."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rayfuse.train.runs import upload
from rayfuse.train.state import MODEL_FILE

_FOLDER = "soup"

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Soup:
    """Averaged weights, what they reach, and which of the checkpoints they are made of, by their order."""

    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]
    ingredients: list[int]


def greedy_soup(
    checkpoints: Iterable[Weights],
    evaluate: Callable[[Weights], dict[str, float]],
    goodness: Callable[[Mapping[str, float]], float],
) -> Soup:
    """Average checkpoints, the best first, each only if the average is then as good as without it or better.

    `evaluate` gives the validation metrics of weights and `goodness` says of metrics how good they are, so a soup is
    never worse there than its best ingredient. Raises ValueError without checkpoints.
    """
    soup: Soup | None = None
    for number, weights in enumerate(checkpoints):
        mixed = dict(weights) if soup is None else _with_one_more(soup, weights)
        metrics = evaluate(mixed)
        if soup is None or goodness(metrics) >= goodness(soup.metrics):
            soup = Soup(mixed, metrics, [*(soup.ingredients if soup else []), number])
    if soup is None:
        raise ValueError("a soup takes at least one checkpoint")
    return soup


def _with_one_more(soup: Soup, weights: Weights) -> dict[str, torch.Tensor]:
    count = len(soup.ingredients)
    return {name: _mean(tensor, weights[name], count) for name, tensor in soup.weights.items()}


def _mean(of_many: torch.Tensor, one: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of `count` tensors and one more; counters, which are whole numbers, stay those of the best."""
    if not of_many.is_floating_point():
        return of_many
    return (of_many.double() * (count / (count + 1)) + one.double() / (count + 1)).to(of_many.dtype)


def keep_soup(soup: Soup, run: str) -> str:
    """Write a soup's model file to the folder of a run, as a checkpoint has it; the URL of its folder there."""
    from safetensors.torch import save_file

    url = f"{run}/{_FOLDER}"
    with tempfile.TemporaryDirectory(prefix="rayfuse-soup-") as scratch:
        save_file(
            {name: tensor.contiguous() for name, tensor in soup.weights.items()}, Path(scratch, MODEL_FILE)
        )
        upload(Path(scratch), url)
    return url
