"""The custom encoder in docs/encoders.md runs unchanged."""

import re
import sys
from pathlib import Path

import pytest
import tiny_jobs
import yaml
from variants import train_and_reload

from rayfuse.errors import SpecError
from rayfuse.spec.encoders import ENCODERS


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/encoders.md").read_text()


@pytest.fixture
def my_encoders(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"<!-- custom-encoder:.*?-->\n```python\n(.*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "my_encoders.py").write_text(found[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)


@pytest.mark.usefixtures("my_encoders")
def test_documented_custom_encoder_trains(page: str, tmp_path: Path) -> None:
    found = re.search(r"<!-- custom-encoder-spec -->\n```yaml\n(.*?)```", page, re.DOTALL)
    assert found
    block = yaml.safe_load(found[1])["encoder"]
    model, _ = train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, **{"inputs.image.encoder": block}))
    assert type(model.encoders["image"]).__name__ == "ColorHistogram"
    assert model.encoders["image"].shades == 16
    wrong = tiny_jobs.tiny_job(tmp_path, **{"inputs.image.encoder": {**block, "options": {"shades": 1}}})
    with pytest.raises(SpecError, match="options.shades: must be at least 2"):
        train_and_reload(tmp_path, wrong)


def test_documentation_lists_every_encoder(page: str) -> None:
    rows = dict(re.findall(r"^\| (\w+) \| (`.*?) \|", page, re.MULTILINE))
    for kind, family in ENCODERS.items():
        for name in family:
            assert name == "huggingface" or f"`{name}`" in rows[kind], (kind, name)
