"""The Python API in a script, from rows in memory to a champion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
SCRIPT = """
import ray  # before Rayfuse has chosen a token: Ray has read its settings
import rayfuse

ROWS = [{"text": text, "price": price, "stars": 5 if text == "good" else 1}
        for price in range(60) for text in ("good", "bad")]
JOB = {
    "name": "script", "data": {"train": ROWS, "test": ROWS[:40]}, "fusion": {"type": "concat"},
    "inputs": {"text": {"type": "text", "encoder": {"type": "conv"}},
               "facts": {"type": "tabular", "columns": ["price"], "encoder": {"type": "mlp"}}},
    "tasks": {"stars": {"type": "classification"}},
    "train": {"epochs": 3, "batch_size": 16},
}
result = rayfuse.train(JOB, verbose=False)
assert not ray.is_initialized()
assert (result.model, result.version, result.evaluated_on) == ("script", 1, "test")
assert result.metrics["stars/accuracy"] == 1.0, result
assert list(result.by_inputs) == ["text+facts", "text", "facts"]

evaluated = rayfuse.evaluate(result.uri, ROWS[:40], verbose=False)
assert evaluated.metrics["stars/accuracy"] == result.metrics["stars/accuracy"]
try:
    rayfuse.promote("script", thresholds={"stars/accuracy": 1.1}, verbose=False)
except rayfuse.errors.GateRejectedError as error:
    assert "1.1" in str(error)
else:
    raise AssertionError("a bound above 1 passed")
assert rayfuse.promote("script", verbose=False).decision == "promoted"

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
job = rayfuse.Job(**JOB).override(**{"train.epochs": 1, "data.train": ray.data.from_items(ROWS)})
again = rayfuse.train(job, verbose=False)
assert ray.is_initialized()
assert again.version == 2
described = rayfuse.describe_model("script")
assert described["aliases"] == {"candidate": 2, "champion": 1}
rayfuse.promote("script", tolerance=1.0, verbose=False)
assert rayfuse.rollback("script").version == 1
print(rayfuse.plan(job, rows=100))
"""


def test_from_rows_in_memory_to_a_champion(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYFUSE_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**clean, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "smallest layout that fits" in done.stdout
    assert "epoch" not in done.stderr
