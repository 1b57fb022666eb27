"""`rayfuse serve` without Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoints import running_endpoint

from rayfuse.api.serving import Endpoint, ServingCluster, speech_curl_command
from rayfuse.cli import main
from rayfuse.cli.serve import _summary
from rayfuse.serving.dashboard import Dashboard


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["serve", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_without_a_cluster_nothing_is_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "status") == (0, {"endpoints": []})
    assert run(capsys, "down") == (0, {"down": None, "cluster_stopped": False})
    assert not (tmp_path / "state").exists()


def test_an_unknown_endpoint_has_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = run(capsys, "down", "tiny")
    assert (code, answer["error"]["message"]) == (2, "tiny: no such endpoint; up are: none")


@pytest.mark.parametrize(
    ("content", "code", "expected_message"),
    [
        ("kind: service\nname: x\nmodel: {folder}\nprot: 1\n", 2, "prot: unknown key; did you mean port?"),
        ("kind: job\n", 2, "this command requires `service`"),
        ("kind: service\nname: x\nmodel: {folder}\n", 1, "not a model folder"),
    ],
)
def test_nothing_is_started_for_an_invalid_service(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, code: int, expected_message: str
) -> None:
    spec = tmp_path / "x.yaml"
    spec.write_text(content.format(folder=tmp_path))
    found, answer = run(capsys, "up", str(spec))
    assert found == code
    assert expected_message in answer["error"]["message"]
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("command", ["status", "down"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_unresponsive_cluster_is_unreachable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, answer = run(capsys, command)
    assert code == 4
    assert address in answer["error"]["message"]


def test_the_summary_of_a_voice_has_its_routes_and_no_predictions() -> None:
    status = replace(running_endpoint("joe"), model={"name": "joe", "version": 2}, num_api_keys=1)
    cluster = ServingCluster(Dashboard("http://host", None))
    text = _summary(Endpoint(status, cluster, openai_curl=speech_curl_command(status)))
    assert text.splitlines() == [
        "joe is up: joe 2, 1 replica(s)",
        "",
        "openai     http://host/joe/v1",
        "docs       http://host/joe/docs",
        "dashboard  http://host",
        "",
        'try        curl -o speech.wav -H "Authorization: Bearer $RAYFUSE_API_KEY" -H "Content-Type: application/json" '
        '-d \'{"model": "joe", "input": "…", "response_format": "wav"}\' http://host/joe/v1/audio/speech',
    ]
