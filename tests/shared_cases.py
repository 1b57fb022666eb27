"""Jobs of the cases in `../shared/cases`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MakeCase = Callable[..., Path]
"""Copies a case by its name, runs `make.py` with the arguments that follow, and returns the folder."""
NEW_NAMES = {"table": "tabular", "series": "timeseries", "sequence": "item_sequence"}
"""Types of inputs in the specs of the cases → their names today."""


def load_case(path: Path, **variables: str) -> Any:
    """Return the job of a case, with the names that inputs have today."""
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    text = path.read_text()
    for name, value in {"OUT": str(path.parent / "runs"), **variables}.items():
        text = text.replace(f"${{{name}}}", value)
    content = yaml.safe_load(text)
    for options in content["inputs"].values():
        options["type"] = NEW_NAMES.get(options["type"], options["type"])
    return validate_spec(content, Job, str(path), base=str(path.parent))
