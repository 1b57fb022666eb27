"""Export of a checkpoint as a model folder."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from safetensors.torch import load_file

from rayfuse.model.model_io import save_model
from rayfuse.spec.job import Job
from rayfuse.training.runs import RunFolder
from rayfuse.training.state import MODEL_FILE, read_calibration


def export_model(
    job: Job, checkpoint: str, run: RunFolder, folder: Path, metadata: Mapping[str, Any]
) -> Path:
    """Export a checkpoint as a model folder to the local `folder`, and copy it to the run; return `folder`.

    Buffers that were calibrated after training replace those of the checkpoint.
    """
    fs, path = fsspec.url_to_fs(f"{checkpoint}/{MODEL_FILE}")
    with tempfile.TemporaryDirectory() as scratch:
        fs.get_file(path, f"{scratch}/{MODEL_FILE}")
        weights = load_file(f"{scratch}/{MODEL_FILE}")
        save_model(folder, job, {**weights, **read_calibration(run.url)}, metadata)
    run.upload(folder, "model")
    return folder
