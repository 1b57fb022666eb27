"""Pretrained models on this machine."""

import json
from pathlib import Path

from rayfuse.presets.pretrained import find_pretrained


def write_model(folder: Path, model_type: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def test_models_are_found_by_what_they_read(tmp_path: Path) -> None:
    write_model(tmp_path / "a", "whisper")
    write_model(tmp_path / "b", "bert")
    write_model(tmp_path / "c", "bert")
    write_model(tmp_path / "d", "llama")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = find_pretrained({"RAYFUSE_MODELS": str(tmp_path)})
    assert found == {"audio": str(tmp_path / "a"), "text": str(tmp_path / "b")}
