"""What `rayfuse.tune` rejects before Ray starts."""

from pathlib import Path

import pytest
import tiny_jobs
import tiny_sweeps

import rayfuse
from rayfuse.errors import SpecError


def test_trials_without_the_memory_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tiny_jobs.make_rows(tmp_path)
    sizes = [{"type": "concat", "hidden": 16}, {"type": "concat", "hidden": 10**9}]
    tiny_sweeps.make_space(tmp_path, {"type": "grid"}, {"fusion": {"grid": sizes}})
    with pytest.raises(SpecError) as caught:
        rayfuse.tune(tmp_path / "sweep.yaml", verbose=False)
    (line,) = [line for line in str(caught.value).splitlines() if "each worker needs" in line]
    assert line.startswith(f"{tmp_path}/sweep.yaml: fusion={{concat hidden=1000000000}}: each worker needs ")
    assert " on this machine; " in line
