"""Names of metrics that a run logs."""

from typing import Any

import pytest

from rayfuse.registry.recorded_training import input_subset_metrics


def test_mlflow_accepts_the_metric_names_of_input_subsets(client: Any) -> None:
    by_inputs = {
        "image+text": {"answer/accuracy": 0.75, "answer/f1_macro": 0.5},
        "text": {"answer/accuracy": 0.5},
    }
    metrics = input_subset_metrics({"split": "test", "by_inputs": by_inputs})
    assert metrics["test_by_inputs/image.text/answer/accuracy"] == 0.75
    assert not any("macro" in name for name in metrics)
    run_id = client.create_run(client.create_experiment("by inputs")).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    assert client.get_run(run_id).data.metrics == pytest.approx(metrics)
