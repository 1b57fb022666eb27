"""The specs and the custom fusion in docs/fusion.md run unchanged."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import yaml
from variants import train_and_reload

from rayfuse.spec.fusion import FUSIONS
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec

PAGE = (Path(__file__).parents[2] / "docs/fusion.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
SPECS = [block["fusion"] for block in BLOCKS]
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_documentation_has_a_section_per_fusion() -> None:
    assert set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == set(FUSIONS)
    assert {spec["type"] for spec in SPECS} >= set(FUSIONS)
    assert set(re.findall(r"\]\(#(\w+)\)", PAGE)) == set(FUSIONS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block["fusion"]["type"])
def test_documented_specs_are_valid(block: dict[str, Any], tmp_path: Path) -> None:
    content = tiny_jobs.job_content(tmp_path, audio=True)
    content["inputs"]["text"]["encoder"] = {"type": "huggingface", "model": "/models/any", "pool": "none"}
    job = validate_spec(content | block, Job, "docs/fusion.md")
    assert job.fusion.type == block["fusion"]["type"]


def test_documented_custom_fusion_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_fusion.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    job = tiny_jobs.tiny_job(tmp_path, audio=True, fusion=SPECS[-1])
    model, _ = train_and_reload(tmp_path, job)
    assert type(model.fusion).__name__ == "ProductFusion"
    assert model.fusion.scale == 0.5
