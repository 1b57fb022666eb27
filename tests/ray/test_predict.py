"""Prediction of Ray Datasets, and of data files by Ray actors."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_jobs import make_model_folder, tiny_job, write_rows

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


def test_a_killed_prediction_resumes_with_the_same_file(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    """Kill the process once a part is written; the second call predicts the other rows, each once."""
    import pandas as pd

    import rayfuse

    folder = make_model_folder(tmp_path, steps=5, job=tiny_job(tmp_path / "data"))
    row = {"text": "which colour is it?", "image": "train0.png"}
    data = write_rows(tmp_path / "data" / "rows.jsonl", [{"id": number, **row} for number in range(5000)])
    target = tmp_path / "out.parquet"
    script = (
        f"import rayfuse; rayfuse.predict({str(folder)!r}, {str(data)!r}, {str(target)!r}, concurrency=2)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not any(tmp_path.glob("out.parquet.parts/*-*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    resumed = rayfuse.predict(folder, data, target, concurrency=2)
    assert (resumed.rows, resumed.invalid) == (5000, 0)
    assert 0 < resumed.resumed < 5000
    rayfuse.predict(folder, data, tmp_path / "whole.parquet")
    frames = [pd.read_parquet(tmp_path / name) for name in ("out.parquet", "whole.parquet")]
    assert frames[0]["id"].tolist() == list(range(5000))
    pd.testing.assert_frame_equal(*frames, rtol=1e-4)
