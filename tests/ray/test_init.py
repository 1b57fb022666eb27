"""`rayfuse train DATA --target COLUMN`: from a csv file to a registered model."""

import json
from pathlib import Path

import pytest

from rayfuse.cli import main
from rayfuse.cluster.local import LocalCluster

pytestmark = pytest.mark.ray
ROWS = 300


def test_real_reviews_are_trained_without_a_job(
    ray_cluster: LocalCluster,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    reviews = pd.read_csv(shared / "data/tabular_text/womens_clothing_reviews_1000.csv", nrows=ROWS)
    reviews.to_csv("reviews.csv", index=False)
    options = ["--target", "Recommended IND", "--exclude", "Rating", "--set", "train.epochs=2"]
    assert main(["train", "reviews.csv", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["model"], result["version"], result["evaluated_on"]) == (
        "reviews-Recommended-IND",
        1,
        "test",
    )
    assert set(result["by_inputs"]) > {"table", "Title", "review_text"}
    assert result["metrics"]["recommended_ind/accuracy"] > 0.5
    assert (tmp_path / "runs").is_dir()
