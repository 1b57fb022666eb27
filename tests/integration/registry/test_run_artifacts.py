"""Plots that are logged to the run of a model."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayfuse.registry.download import LocalModel
from rayfuse.registry.run_artifacts import log_attribution_plots


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "row_01.png").write_bytes(b"an image")
    return tmp_path / "drawn"


def logged(client: Any, run_id: str) -> list[str]:
    return [found.path for found in client.list_artifacts(run_id, "plots/attributions")]


def test_plots_are_logged_to_the_run_of_a_registered_model(client: Any, drawn: Path) -> None:
    run_id = client.create_run(
        client.create_experiment("explained", str(drawn.parent / "artifacts"))
    ).info.run_id
    client.create_registered_model("explained")
    version = int(client.create_model_version("explained", "/nowhere", run_id=run_id).version)
    local = LocalModel(Path("/nowhere"), "explained", version)
    assert log_attribution_plots(drawn, local, client.tracking_uri, pytest.fail) == run_id
    assert logged(client, run_id) == ["plots/attributions/row_01.png"]


def test_plots_are_logged_to_the_run_whose_folder_contains_the_model(
    client: Any, drawn: Path, tmp_path: Path
) -> None:
    run_id = client.create_run(
        client.create_experiment("run folder", str(tmp_path / "artifacts"))
    ).info.run_id
    (tmp_path / "run.json").write_text(json.dumps({"name": "x", "mlflow_run_id": run_id}))
    (tmp_path / "job.json").write_text(
        json.dumps({"output": {"storage": str(tmp_path), "tracking_uri": client.tracking_uri}})
    )
    assert log_attribution_plots(drawn, LocalModel(tmp_path / "model"), None, pytest.fail) == run_id
    assert logged(client, run_id) == ["plots/attributions/row_01.png"]


def test_a_warning_is_logged_if_mlflow_is_down(drawn: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    (tmp_path / "run.json").write_text(json.dumps({"mlflow_run_id": "abc"}))
    (tmp_path / "job.json").write_text(json.dumps({"output": {"storage": str(tmp_path / "gone")}}))
    local = LocalModel(tmp_path / "model")
    assert log_attribution_plots(drawn, local, str(tmp_path / "gone" / "mlflow.db"), warnings.append) is None
    assert "the plots were not logged to MLflow" in warnings[0]
    assert log_attribution_plots(drawn, LocalModel(drawn / "model"), None, warnings.append) is None
    assert len(warnings) == 1
