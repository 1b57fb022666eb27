"""Prediction of Ray Datasets."""

from pathlib import Path

import pytest
from tiny_jobs import make_model_folder, tiny_job

from rayfuse.cluster.local import LocalCluster

pytestmark = pytest.mark.ray


def test_a_dataset_has_the_predictions_of_its_rows(
    ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    import rayfuse

    make_model_folder(tmp_path, steps=5, job=tiny_job(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "data")
    model = rayfuse.load_model(tmp_path / "model")
    texts = [f"which colour is {word}?" for word in ("this", "it", "here")] * 20
    rows = [{"text": text, "image": str(tmp_path / "data" / "train0.png"), "label": "red"} for text in texts]
    with ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True):
        found = model.predict(ray.data.from_items(rows)).to_pandas()
    expected = model.predict(rows)
    assert list(found.columns) == ["answer/label", "answer/scores", "inputs_used"]
    assert list(found["answer/label"]) == [one["outputs"]["answer"]["label"] for one in expected]
    for scores, one in zip(found["answer/scores"], expected, strict=True):
        assert scores == pytest.approx(one["outputs"]["answer"]["scores"], abs=1e-5)
    assert list(map(list, found["inputs_used"])) == [["image", "text"]] * len(rows)
