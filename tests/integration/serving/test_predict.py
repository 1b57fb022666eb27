"""`rayfuse predict`: the same predictions and errors from an endpoint and from the model."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayfuse.cli import main


@pytest.fixture
def given(tmp_path: Path, png: bytes, clip: bytes) -> list[str]:
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "a.wav").write_bytes(clip)
    return [f"image=@{tmp_path}/a.png", f"audio=@{tmp_path}/a.wav", "text=which colour is it?"]


@pytest.fixture(params=["endpoint", "folder"])
def model(request: pytest.FixtureRequest, server: str, model_folder: Path) -> str:
    return server if request.param == "endpoint" else str(model_folder)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["predict", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_endpoint_and_model_predict_the_same(
    capsys: pytest.CaptureFixture[str], server: str, model_folder: Path, given: list[str]
) -> None:
    (code, over_http), (_, direct) = (run(capsys, model, *given) for model in (server, str(model_folder)))
    assert code == 0
    assert set(over_http) == set(direct) == {"outputs", "inputs_used", "model"}
    assert over_http["inputs_used"] == direct["inputs_used"] == ["image", "text", "audio"]
    assert over_http["outputs"]["answer"]["label"] == direct["outputs"]["answer"]["label"]
    assert over_http["outputs"]["answer"]["scores"] == pytest.approx(
        direct["outputs"]["answer"]["scores"], abs=1e-4
    )


def test_text_output_has_label_score_and_inputs(
    capsys: pytest.CaptureFixture[str], model: str, given: list[str]
) -> None:
    assert main(["predict", model, *given[:1], given[2]]) == 0
    printed = capsys.readouterr().out
    assert "answer: " in printed
    assert "%" in printed
    assert "from image, text, by tiny" in printed


def test_text_from_a_file(
    capsys: pytest.CaptureFixture[str], model: str, given: list[str], tmp_path: Path
) -> None:
    (tmp_path / "question.txt").write_text("which colour is it?")
    _, direct = run(capsys, model, *given)
    code, read = run(capsys, model, *given[:2], f"text=@{tmp_path}/question.txt")
    assert code == 0
    assert read == direct


@pytest.mark.parametrize(
    ("values", "expected_message"),
    [
        (["text=hi"], "image: missing"),
        (["imag=x", "text=hi"], "imag: not an input of this model"),
        (["image=@/nope.png", "text=hi"], "image: /nope.png: file not found"),
        (["text"], "expected NAME=VALUE"),
        (["=x"], "expected NAME=VALUE"),
        (["text=a", "text=b"], "text: given twice"),
    ],
)
def test_invalid_inputs_have_exit_code_2(
    capsys: pytest.CaptureFixture[str], model: str, values: list[str], expected_message: str
) -> None:
    code, answer = run(capsys, model, *values)
    assert code == 2
    assert expected_message in answer["error"]["message"]


def test_a_path_is_read_with_and_without_at_sign(
    capsys: pytest.CaptureFixture[str], model: str, given: list[str], tmp_path: Path
) -> None:
    _, with_sign = run(capsys, model, *given)
    code, without = run(capsys, model, f"image={tmp_path}/a.png", *given[1:])
    assert code == 0
    assert without == with_sign
    code, answer = run(capsys, model, "image=nope.png", given[2])
    assert (code, answer["error"]["message"]) == (2, "image: nope.png: no such file")


def test_corrupt_files_are_named(
    capsys: pytest.CaptureFixture[str], model: str, given: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_text("a text file")
    code, answer = run(capsys, model, *given)
    assert code == 2
    assert answer["error"]["message"].startswith("image: not a readable image")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/tiny", "http://no-such-host.invalid/x", "http://[", "https://"]
)
def test_missing_endpoint(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert run(capsys, url, "text=hi")[0] == 4


def test_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, answer = run(capsys, str(tmp_path), "text=hi")
    assert code == 1
    assert "not a model folder" in answer["error"]["message"]
