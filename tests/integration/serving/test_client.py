"""HTTP client with an endpoint on a real server."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from rayfuse.errors import InvalidInputError, RayfuseError, UnavailableError
from rayfuse.serving.client import predict, predict_url


def test_predict_over_http(server: str, png: bytes, clip: bytes) -> None:
    answer = predict(server, {"image": ("a.png", png), "audio": clip, "text": "which colour is it?"})
    assert answer["inputs_used"] == ["image", "text", "audio"]


@pytest.mark.parametrize("end", ["", "/", "/predict", "/docs", "/predict/"])
def test_any_url_of_an_endpoint_is_accepted(end: str) -> None:
    assert predict_url(f"http://h:1/route{end}") == "http://h:1/route/predict"


def test_an_invalid_input_is_named(server: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        predict(server, {"text": "hi"})
    assert caught.value.input_name == "image"
    assert str(caught.value) == "image: missing, and this input is required"


@pytest.mark.parametrize("path", ["", "/elsewhere"])
def test_a_missing_endpoint_is_unreachable(server: str, path: str) -> None:
    with pytest.raises(UnavailableError):
        predict(server.removesuffix("/tiny") + path if path else "http://127.0.0.1:1/tiny", {"text": "hi"})


def test_other_errors_are_failures(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    answers: list[Any] = [
        (503, {"detail": "full"}, RayfuseError),
        (401, {"detail": "key"}, UnavailableError),
        (200, {"not": "ours"}, UnavailableError),
        (500, "<html>", RayfuseError),
    ]
    for status, content, kind in answers:
        response = httpx.Response(status, json=content)
        monkeypatch.setattr(httpx, "request", lambda *_, response=response, **__: response)
        with pytest.raises(kind) as caught:
            predict(server, {})
        assert type(caught.value) is kind


def test_large_bodies_are_rejected_before_upload(server: str) -> None:
    """The server decides by Content-Length."""
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


@pytest.mark.parametrize("name", ["q.txt", "q.md", "q.html", "q.log", "q"])
def test_files_of_any_name_are_sent(name: str, server: str, png: bytes) -> None:
    question = "which colour is it?"
    wanted = predict(server, {"image": png, "text": question})
    assert predict(server, {"image": (f"{name}.svg", png), "text": (name, question.encode())}) == wanted
    words = json.dumps(question.split()).encode()
    assert predict(server, {"image": png, "text": ("q.json", words)}) == predict(
        server, {"image": png, "text": question.split()}
    )
