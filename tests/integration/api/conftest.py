"""A model with inputs of every type, whose columns have other names than the inputs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from kinds_of_input import make_job, make_rows
from tiny_jobs import make_model_folder

from rayfuse.api.models import Model, load_model

COLUMNS = {
    "clip": "film",
    "sensor": "readings",
    "history": "purchases",
    "images": "photos",
    "text": "note",
}
"""Column of each input that has only one."""


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Return rows as in the training file, with the label; media are paths."""
    return []


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    """Return a folder with the model in model/, its rows in train.jsonl and train.csv, and their media."""
    folder = tmp_path_factory.mktemp("kinds")
    rows += [
        {COLUMNS.get(name, name): value for name, value in row.items()} for row in make_rows(folder, n=12)
    ]
    overrides = {f"inputs.{name}.column": column for name, column in COLUMNS.items()}
    make_model_folder(folder, steps=2, job=make_job(folder, rows, **overrides))
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows({column: _to_cell(value) for column, value in row.items()} for row in rows)
    return folder


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load_model(folder / "model")


def _to_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value
