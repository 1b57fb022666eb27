"""Voices as registered models: from the folder of Piper to a version that is promoted and downloaded."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_voice

import rayfuse
from rayfuse.cli import main
from rayfuse.errors import DataError, ResourceError, SpecError
from rayfuse.registry.download import download, folder_digest
from rayfuse.registry.versions import get_version
from rayfuse.speech.voice import Voice


@pytest.fixture
def piper(tmp_path: Path) -> Path:
    return tiny_voice.write_piper_voice(tmp_path / "piper")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `rayfuse …`, and return its exit code and JSON."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def register(client: Any, folder: Path, name: str, **options: Any) -> Any:
    options = {"license": "CC0-1.0", **options}
    return rayfuse.register_voice(folder, name, tracking_uri=client.tracking_uri, **options)


def test_a_registered_voice_has_its_facts_and_its_files(client: Any, piper: Path) -> None:
    voice = register(client, piper, "facts")
    assert voice.uri == "models:/facts/1"
    assert str(voice).startswith("registered facts version 1 as candidate: en-US, 16000 Hz, license CC0-1.0")
    version = get_version(client, "facts", 1)
    assert (version.kind, version.aliases) == ("voice", ("candidate",))
    assert version.voice == {
        "license": "CC0-1.0",
        "language": "en-US",
        "sample_rate": "16000",
        "phonemizer": "dictionary",
    }
    folder = download(client, voice.uri)
    assert folder_digest(folder) == voice.digest == version.folder_digest
    assert Voice(folder).speakers == ("facts",)
    stored = client.get_model_version("facts", "1")
    assert "License: CC0-1.0" in stored.description
    assert client.get_run(stored.run_id).info.status == "FINISHED"
    assert client.get_logged_model(stored.source.removeprefix("models:/")).status == "READY"


def test_the_same_files_are_the_same_version(client: Any, piper: Path) -> None:
    assert register(client, piper, "same").version == 1
    assert register(client, piper, "same").version == 1
    assert register(client, piper, "same", phonemizer="espeak").version == 2
    assert rayfuse.describe_model("same", client.tracking_uri)["aliases"] == {"candidate": 2}


def test_voices_are_promoted_and_rolled_back(client: Any, piper: Path) -> None:
    register(client, piper, "moving")
    assert rayfuse.promote("moving", tracking_uri=client.tracking_uri).decision == "promoted"
    register(client, piper, "moving", license="MIT")
    record = rayfuse.promote("moving", tracking_uri=client.tracking_uri)
    assert (record.decision, record.version) == ("promoted", 2)
    assert [gate.reason for gate in record.gates] == ["voices have no metrics to compare"]
    assert rayfuse.rollback("moving", tracking_uri=client.tracking_uri).version == 1


def test_the_command_registers_and_shows_them(
    client: Any, piper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (piper / "MODEL_CARD").write_text("* License: CC0\n")
    tracking = ("--tracking-uri", client.tracking_uri)
    code, voice = command(capsys, "models", "register-voice", str(piper), "--name", "spoken", *tracking)
    assert code == 0
    assert (voice["model"], voice["license"], voice["speakers"]) == ("models:/spoken/1", "CC0", [])
    code, shown = command(capsys, "models", "show", "spoken", *tracking)
    assert shown["versions"][0]["voice"]["language"] == "en-US"
    assert main(["models", "show", "spoken", *tracking]) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.split() == ["version", "aliases", "created", "decision", "language", "sample_rate", "phonemizer", "license"]  # fmt: skip
    assert row.split()[-4:] == ["en-US", "16000", "dictionary", "CC0"]


def test_errors_name_the_remedy(
    client: Any, piper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="no MODEL_CARD states a license; pass --license"):
        register(client, piper, "bad", license=None)
    with pytest.raises(SpecError, match="--name a/b: not a name"):
        register(client, piper, "a/b")
    with pytest.raises(DataError, match=r"must have one \.onnx file"):
        register(client, tmp_path, "bad")
    german = tiny_voice.write_piper_voice(
        tmp_path / "german", language={"code": "de_DE"}, espeak={"voice": "de"}
    )
    with pytest.raises(SpecError, match="pass --phonemizer espeak"):
        register(client, german, "bad")
    assert register(client, german, "german", phonemizer="espeak").language == "de-DE"
    table = {"^": [1], "$": [2], "_": [0], " ": [3], "ж": [4]}
    deaf = tiny_voice.write_piper_voice(tmp_path / "deaf", phoneme_id_map=table)
    with pytest.raises(
        DataError, match="bad: the voice cannot speak 'One, 2, 3.': it knows none of its phonemes"
    ):
        register(client, deaf, "bad")
    for module, remedy in (("pycrfsuite", "rayfuse"), ("onnxruntime", "rayfuse")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ResourceError, match=rf"{module}: pip install '{remedy}\[speech\]'"):
                register(client, piper, "bad")
    assert "bad" not in [model["name"] for model in rayfuse.list_models(client.tracking_uri)]


def test_a_trained_model_of_the_same_name_stays_as_it_is(client: Any, piper: Path, add_version: Any) -> None:
    add_version("taken")
    with pytest.raises(SpecError, match="taken: a registered model of another kind"):
        register(client, piper, "taken")
