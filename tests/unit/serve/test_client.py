"""Asking an endpoint on a real HTTP server."""

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rayfuse.errors import NotReachable, RayfuseError, SpecError
from rayfuse.serve.client import ask, predict_url


def test_an_endpoint_answers(server: str, picture: bytes, clip: bytes) -> None:
    answer = ask(server, {"image": ("a.png", picture), "audio": clip, "text": "which colour is it?"})
    assert answer["inputs_used"] == ["image", "text", "audio"]


@pytest.mark.parametrize("end", ["", "/", "/predict", "/docs", "/predict/"])
def test_any_address_of_an_endpoint_will_do(end: str) -> None:
    assert predict_url(f"http://h:1/route{end}") == "http://h:1/route/predict"


def test_a_fault_of_an_input_is_a_wrong_command(server: str) -> None:
    with pytest.raises(SpecError, match="image: missing, and this input is required"):
        ask(server, {"text": "hi"})


@pytest.mark.parametrize("path", ["", "/elsewhere"])
def test_no_endpoint_there_is_not_reachable(server: str, path: str) -> None:
    with pytest.raises(NotReachable):
        ask(server.removesuffix("/tiny") + path if path else "http://127.0.0.1:1/tiny", {"text": "hi"})


def test_other_errors_are_failures(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    answers: list[Any] = [
        (503, {"detail": "full"}, RayfuseError),
        (401, {"detail": "key"}, NotReachable),
        (200, {"not": "ours"}, NotReachable),
        (500, "<html>", RayfuseError),
    ]
    for status, content, kind in answers:
        response = httpx.Response(status, json=content)
        monkeypatch.setattr(httpx, "post", lambda *_, response=response, **__: response)
        with pytest.raises(kind) as caught:
            ask(server, {})
        assert type(caught.value) is kind


def test_a_large_body_is_refused_before_it_is_sent(server: str) -> None:
    """By its Content-Length alone."""
    parts = urlsplit(server)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    connection.putrequest("POST", f"{parts.path}/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "1000000000")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_the_page_names_the_route(server: str) -> None:
    import httpx

    assert "/tiny/docs/swagger-ui.css" in httpx.get(f"{server}/docs").text
    assert httpx.get(f"{server}/openapi.json").json()["servers"][0]["url"] == "/tiny"


def test_uploads_by_path_keep_their_media_type(tmp_path: Path, server: str) -> None:
    with pytest.raises(SpecError, match="text/html is not read here"):
        ask(server, {"image": ("page.html", b"<p>"), "text": "hi"})
