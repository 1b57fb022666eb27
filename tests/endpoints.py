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
