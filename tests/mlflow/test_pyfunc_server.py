"""`mlflow models serve` with the rows of a csv file."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_server import Server
from tiny_jobs import make_model_folder, write_rows

from rayfuse.cluster.local import free_ports
from rayfuse.registry.mlflow_connection import connect
from rayfuse.registry.registration import register
from rayfuse.registry.tracker import Tracker
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

_START_SECONDS = 600


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv file with numbers, a category, a text and a label."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    table = pd.DataFrame({"age": [20 + i % 40 for i in range(60)], "city": ["A", "B"] * 30})
    table["note"] = "number " + table["age"].astype(str)
    table["label"] = ["c0", "c1"] * 30
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def invocations(shared_server: Server, rows: Path) -> Iterator[str]:
    """Return the URL at which `mlflow models serve` answers for a registered model."""
    job = {
        "kind": "job",
        "name": "served",
        "data": {"train": str(rows)},
        "inputs": {
            "facts": {"type": "tabular", "columns": ["age", "city"], "encoder": {"type": "mlp"}},
            "text": {"type": "text", "column": "note", "encoder": {"type": "conv"}, "optional": True},
        },
        "fusion": {"type": "concat"},
        "tasks": {"label": {"type": "classification"}},
        "output": {"storage": str(rows.parent / "runs")},
    }
    write_rows(rows.parent / "job.yaml", [job])
    fitted = load_spec(rows.parent / "job.yaml", Job)
    folder = make_model_folder(rows.parent, steps=30, job=fitted)
    client = connect(shared_server.uri)
    tracker = Tracker.start(client, fitted, "run", rows.parent / "metrics.jsonl")
    evaluation: dict[str, Any] = {
        "split": "test",
        "metrics": {"loss": 0.1, "label/accuracy": 1.0},
        "by_inputs": {},
    }
    from rayfuse.model.model_io import load_job

    register(client, tracker.run_id, load_job(folder)[0], folder, {}, evaluation)
    tracker.finish()
    [port] = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@candidate"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (rows.parent / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": shared_server.uri},
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/ping", rows.parent / "serve.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)


def post(url: str, content: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_rows_of_a_csv_file(invocations: str, rows: Path) -> None:
    frame = pd.read_csv(rows).head(4)
    forms = [
        {"dataframe_split": json.loads(frame.to_json(orient="split", index=False))},
        {"dataframe_records": frame.to_dict("records")},
    ]
    for form in forms:
        status, answer = post(invocations, form)
        assert status == 200, answer
        assert [one["label/label"] for one in answer["predictions"]] == list(frame["label"])
        assert answer["predictions"][0]["inputs_used"] == ["facts", "text"]
    values = [{"facts": {"age": 30, "city": "A"}, "text": "a"}, {"facts": {"city": "B"}}]
    status, answer = post(invocations, {"dataframe_records": values})
    assert [one["label/label"] for one in answer["predictions"]] == ["c0", "c1"]
    assert [one["inputs_used"] for one in answer["predictions"]] == [["facts", "text"], ["facts"]]
    status, answer = post(invocations, {"dataframe_records": [{"age": "old"}]})
    assert "row 0: facts: column age: expected a number, got 'old'" in json.dumps(answer)
    assert status != 200
