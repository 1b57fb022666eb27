"""Plots of a model, logged to the MLflow run that trained it."""

import json
from collections.abc import Callable
from pathlib import Path

from rayfuse.errors import RayfuseError
from rayfuse.registry.download import LocalModel
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.mlflow_errors import translate_errors
from rayfuse.registry.versions import get_version

ATTRIBUTIONS_DIR = "plots/attributions"
"""Folder of a run's artifacts with the plots of explained rows."""


def log_attribution_plots(
    folder: Path, model: LocalModel, tracking_uri: str | None, warn: Callable[[str], None]
) -> str | None:
    """Log a folder of plots to the MLflow run that trained a model; return the run's ID, or None without a run.

    If MLflow is down, `warn` gets the reason, and the plots stay in `folder` alone.
    """
    try:
        if model.name is not None and model.version is not None:
            client = connect(resolve_tracking_uri(tracking_uri), create=False)
            run_id = get_version(client, model.name, model.version).run_id
        elif (found := _find_run(model.folder)) is not None:
            recorded_uri, storage, run_id = found
            client = connect(resolve_tracking_uri(tracking_uri or recorded_uri, storage), create=False)
        else:
            return None
        if run_id is not None:
            with translate_errors(client.tracking_uri):
                client.log_artifacts(run_id, str(folder), ATTRIBUTIONS_DIR)
        return run_id
    except RayfuseError as error:
        warn(f"the plots were not logged to MLflow: {error}")
        return None


def _find_run(folder: Path) -> tuple[str | None, str, str] | None:
    """Return `output.tracking_uri`, `output.storage` and the MLflow run of the run folder around a model folder."""
    try:
        run = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))
        output = json.loads((folder.parent / "job.json").read_text(encoding="utf-8"))["output"]
        run_id = run["mlflow_run_id"]
        return (output.get("tracking_uri"), output["storage"], run_id) if run_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
