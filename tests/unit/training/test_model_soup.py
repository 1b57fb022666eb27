"""Greedy averages of checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayfuse.training.model_soup import Weights, greedy_soup, save_soup


def weights(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float32), "count": torch.tensor(len(values))}


def distance_to(*wanted: float):
    def evaluate(found: Weights) -> dict[str, float]:
        return {"loss": float((found["w"] - torch.tensor(wanted, dtype=torch.float32)).norm())}

    return evaluate


def better(metrics) -> float:
    return -metrics["loss"]


def test_only_checkpoints_that_help_are_averaged() -> None:
    checkpoints = [weights(1, 0), weights(-1, 0), weights(9, 9), weights(0, 0)]
    soup = greedy_soup(checkpoints, distance_to(0, 0), better)
    assert soup.ingredients == [0, 1, 3]
    torch.testing.assert_close(soup.weights["w"], torch.tensor([0.0, 0.0]))
    assert soup.weights["count"] == 2
    assert soup.metrics == {"loss": 0}


def test_a_soup_is_never_worse_than_its_best_ingredient() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        evaluate = distance_to(*torch.randn(3, generator=generator).tolist())
        checkpoints = [{"w": torch.randn(3, generator=generator)} for _ in range(5)]
        checkpoints.sort(key=lambda c: evaluate(c)["loss"])
        soup = greedy_soup(checkpoints, evaluate, better)
        assert soup.metrics["loss"] <= evaluate(checkpoints[0])["loss"]
        assert soup.metrics == evaluate(soup.weights)
        mean = torch.stack([checkpoints[i]["w"] for i in soup.ingredients]).mean(0)
        torch.testing.assert_close(soup.weights["w"], mean)


def test_one_checkpoint_is_a_soup_and_none_is_not(tmp_path: Path) -> None:
    soup = greedy_soup([weights(1, 2)], distance_to(0, 0), better)
    torch.testing.assert_close(soup.weights, weights(1, 2))
    url = save_soup(soup, f"{tmp_path}/run")
    assert url == f"{tmp_path}/run/soup"
    torch.testing.assert_close(load_file(f"{url}/model.safetensors"), weights(1, 2))
    with pytest.raises(ValueError, match="at least one"):
        greedy_soup([], distance_to(0, 0), better)
