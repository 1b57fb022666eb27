"""One MLflow database and one trained model for all tests of the registry, as creating either takes seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_model_folder

from rayfuse.registry.mlflow_connection import artifact_root, connect, resolve_tracking_uri


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a client of a database that all tests share; each test uses different names."""
    return connect(resolve_tracking_uri(str(tmp_path_factory.mktemp("mlflow"))))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the rows of a tiny job in data/ and its trained model in model/."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="session")
def versions_experiment(client: Any) -> str:
    """Return the ID of the experiment with the runs of `add_version`."""
    return str(client.create_experiment("versions", artifact_root(client.tracking_uri, "versions")))


@pytest.fixture
def add_version(client: Any, versions_experiment: str) -> Callable[..., int]:
    """Return a function that registers a version with metrics but no model: `add_version(name, accuracy, digest, alias)`."""

    def add(name: str, accuracy: float = 0.9, digest: str = "same", alias: str | None = "candidate") -> int:
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name)
        record = {
            "split": "test",
            "selection_metric": "answer/accuracy",
            "mode": "max",
            "metric_modes": {"answer/accuracy": "max", "loss": "min"},
            "required_inputs": ["text"],
            "metrics": {"test": {"answer/accuracy": accuracy, "loss": 1 - accuracy}},
            "by_inputs": {
                "image+text": {"answer/accuracy": accuracy},
                "text": {"answer/accuracy": accuracy / 2},
            },
            "digests": {"test": digest},
        }
        run = client.create_run(versions_experiment).info.run_id
        client.log_text(run, json.dumps(record), "versions/record.json")
        tags = {"rayfuse.record": "versions/record.json"}
        version = client.create_model_version(name, "/nowhere", run, tags=tags).version
        if alias:
            client.set_registered_model_alias(name, alias, str(version))
        return int(version)

    return add
