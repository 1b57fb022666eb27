"""Greedy model soup: average of the best checkpoints while it improves (Wortsman et al., 2022)."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rayfuse.training.runs import upload
from rayfuse.training.state import MODEL_FILE

_FOLDER = "soup"

Weights = Mapping[str, torch.Tensor]
"""Tensors of a model by name."""


@dataclass(frozen=True)
class Soup:
    """Average of checkpoints."""

    weights: dict[str, torch.Tensor]
    """Averaged tensors by name."""
    metrics: dict[str, float]
    """Validation metrics of the average."""
    ingredients: list[int]
    """Indices of the averaged checkpoints."""


def greedy_soup(
    checkpoints: Iterable[Weights],
    evaluate: Callable[[Weights], dict[str, float]],
    score: Callable[[Mapping[str, float]], float],
) -> Soup:
    """Average checkpoints, the best first, adding each only if the average does not get worse.

    `evaluate` returns the validation metrics of weights and `score` their quality, higher is better; so a soup is never
    worse on the validation rows than its best ingredient. Raises ValueError without checkpoints.
    """
    soup: Soup | None = None
    for number, weights in enumerate(checkpoints):
        mixed = dict(weights) if soup is None else _average_in(soup, weights)
        metrics = evaluate(mixed)
        if soup is None or score(metrics) >= score(soup.metrics):
            soup = Soup(mixed, metrics, [*(soup.ingredients if soup else []), number])
    if soup is None:
        raise ValueError("a model soup needs at least one checkpoint")
    return soup


def _average_in(soup: Soup, weights: Weights) -> dict[str, torch.Tensor]:
    count = len(soup.ingredients)
    return {name: _running_mean(tensor, weights[name], count) for name, tensor in soup.weights.items()}


def _running_mean(of_many: torch.Tensor, one: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean of `count` tensors and one more; integer tensors (counters) stay those of the best checkpoint."""
    if not of_many.is_floating_point():
        return of_many
    return (of_many.double() * (count / (count + 1)) + one.double() / (count + 1)).to(of_many.dtype)


def save_soup(soup: Soup, run: str) -> str:
    """Write the weights of a soup below the URL of a run, in the file layout of a checkpoint; return the folder's URL."""
    from safetensors.torch import save_file

    url = f"{run}/{_FOLDER}"
    with tempfile.TemporaryDirectory(prefix="rayfuse-soup-") as scratch:
        save_file(
            {name: tensor.contiguous() for name, tensor in soup.weights.items()}, Path(scratch, MODEL_FILE)
        )
        upload(Path(scratch), url)
    return url
