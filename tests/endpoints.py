"""What tests of endpoints share, with Ray and without."""

import base64
from pathlib import Path
from typing import Any

from tiny_jobs import make_model_folder, tiny_job


def b64(content: bytes) -> dict[str, str]:
    """A file as a JSON request gives it."""
    return {"b64": base64.b64encode(content).decode()}


def refused(response: Any, status: int, says: str = "") -> dict[str, Any]:
    """The problem that a response tells, after checking its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert says in problem["detail"]
    assert "Traceback" not in response.text
    return problem


def make_served_model(folder: Path) -> Path:
    """A model of a picture, a text and, optionally, a clip, that has learnt a little."""
    job = tiny_job(folder / "data", audio=True, **{"inputs.image.optional": False, "data.max_bad_rows": 1.0})
    return make_model_folder(folder, steps=20, job=job)


def make_champion(tracking: str, folder: Path, name: str) -> int:
    """Register a model folder as `rayfuse train` does and promote it; its version."""
    from rayfuse.model.folder import read_job
    from rayfuse.registry.deciding import promote
    from rayfuse.registry.storing import register
    from rayfuse.registry.tracker import Tracker
    from rayfuse.registry.tracking import connect

    client, job = connect(tracking), read_job(folder)[0].model_copy(update={"name": name})
    tracker = Tracker.start(client, job, "run", folder.parent / "metrics.jsonl")
    measured = {"metrics": {"answer/accuracy": 0.9, "loss": 0.1}, "by_inputs": {}, "split": "test"}
    version = register(client, tracker.run_id, job, folder, {}, measured, {"test": "digest"})
    tracker.finish()
    promote(client, name, force=True)
    return version
