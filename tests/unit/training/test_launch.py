"""Validation before any row is read."""

from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.training.launch import preflight


def test_fp16_without_gpus(tmp_path: Path) -> None:
    preflight(tiny_jobs.tiny_job(tmp_path, **{"train.precision": "fp16", "compute.gpus_per_worker": 1}))
    with pytest.raises(SpecError, match="train.precision: fp16 needs a GPU; use auto, bf16 or fp32"):
        preflight(tiny_jobs.tiny_job(tmp_path, **{"train.precision": "fp16"}))
