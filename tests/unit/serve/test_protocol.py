"""Requests, parsed without a server."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from rayfuse.errors import BadInput
from rayfuse.model.predictor import Predictor
from rayfuse.serve import protocol
from rayfuse.serve.problems import KINDS, Problem, to_json
from rayfuse.serve.protocol import Asked, Reads, Remote

JSON = "application/json"


@pytest.fixture(scope="session")
def reads(predictor: Predictor) -> Reads:
    return Reads(predictor.job.inputs, predictor.maker.modalities)


@pytest.fixture
def parse(reads: Reads) -> Callable[[Any], Asked]:
    def from_json(content: Any) -> Asked:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return protocol.parse(body, JSON, reads)

    return from_json


def problem(call: Callable[[], Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        call()
    return caught.value


def form(*parts: str, boundary: str = "x") -> tuple[bytes, str]:
    """A multipart body of parts given as `headers\\n\\ncontent`."""
    texts = (part.replace("\n", "\r\n") for part in parts)
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in texts) + f"--{boundary}--\r\n"
    return body.encode(), f"multipart/form-data; boundary={boundary}"


def field(name: str, content: str, extra: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{extra}\n\n{content}'


def file(name: str, content: str, media_type: str | None) -> str:
    declared = f"\nContent-Type: {media_type}" if media_type else ""
    return f'Content-Disposition: form-data; name="{name}"; filename="f"{declared}\n\n{content}'


def test_json_gives_values_by_input(parse: Callable[[Any], Asked]) -> None:
    asked = parse(
        {"inputs": {"text": "hi", "image": {"b64": "aGk="}, "audio": {"url": "https://x.org/a.wav"}}}
    )
    assert asked == Asked(
        [{"text": "hi", "image": b"hi", "audio": Remote("https://x.org/a.wav")}], several=False
    )


def test_null_is_absent(parse: Callable[[Any], Asked]) -> None:
    assert parse({"inputs": {"text": "hi", "audio": None}}).instances == [{"text": "hi"}]


def test_several_instances_are_each_what_a_single_request_is(parse: Callable[[Any], Asked]) -> None:
    asked = parse({"instances": [{"inputs": {"text": "a"}}, {"inputs": {"text": "b"}}]})
    assert asked == Asked([{"text": "a"}, {"text": "b"}], several=True)


def test_base64_may_come_in_lines(parse: Callable[[Any], Asked]) -> None:
    content = bytes(range(256))
    assert parse({"inputs": {"image": {"b64": base64.encodebytes(content).decode()}}}).instances == [
        {"image": content}
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs": {"text": NaN}}', "NaN is not a JSON number"),
        (b'{"inputs": {"text": ' + b"9" * 10_000 + b"}}", "not JSON"),
        (b'{"inputs": {"text": "a", "text": "b"}}', "given twice"),
        ([], '{"inputs": {…}} belongs here'),
        ({}, 'either "inputs" or "instances"'),
        ({"inputs": {"text": "a"}, "instances": []}, 'either "inputs" or "instances"'),
        ({"input": {"text": "a"}}, "did you mean inputs?"),
        ({"inputs": "text"}, "inputs: an object belongs here"),
        ({"instances": []}, "not an empty list"),
        ({"instances": [{"text": "a"}]}, 'instances[0]: {"inputs": {…}} belongs here'),
        ({"instances": [{"inputs": {"text": "a"}}, 5]}, "instances[1]"),
        ({"inputs": {"image": "picture.png"}}, 'image: a file belongs here: {"b64": "…"}'),
        ({"inputs": {"image": {"b64": "a", "url": "b"}}}, "image: a file belongs here"),
        ({"inputs": {"image": {"b64": 5}}}, "image.b64: a string belongs here, not a number"),
        ({"inputs": {"image": {"b64": "*"}}}, "image.b64: not base64"),
        ({"inputs": {"image": {"b64": "é"}}}, "image.b64: not base64"),
    ],
)
def test_a_malformed_body_is_refused_with_its_reason(
    parse: Callable[[Any], Asked], content: Any, says: str
) -> None:
    found = problem(lambda: parse(content))
    assert (found.kind, found.status) == ("malformed", 400)
    assert says in found.detail


def test_an_unknown_input_names_the_nearest(parse: Callable[[Any], Asked]) -> None:
    found = problem(lambda: parse({"inputs": {"imag": None}}))
    assert found.body["input"] == "imag"
    assert (found.status, found.detail) == (400, "imag: not an input of this model; did you mean image?")


def test_too_many_instances_are_too_large(parse: Callable[[Any], Asked]) -> None:
    found = problem(lambda: parse({"instances": [{"inputs": {"text": "a"}}] * (protocol.MAX_INSTANCES + 1)}))
    assert found.status == 413


def test_half_a_surrogate_pair_is_no_text(parse: Callable[[Any], Asked]) -> None:
    found = problem(lambda: parse(b'{"inputs": {"text": "\\ud800"}}'))
    assert (found.status, found.about) == (422, {"input": "text"})


def test_a_required_input_that_is_missing_is_named(parse: Callable[[Any], Asked], reads: Reads) -> None:
    asked = parse(
        {"instances": [{"inputs": {"text": "a", "image": {"b64": "aGk="}}}, {"inputs": {"text": "b"}}]}
    )
    found = problem(lambda: protocol.require(asked, reads))
    assert found.detail == "instances[1]: image: missing, and this input is required"
    assert found.about == {"input": "image", "index": 1}


def test_a_broken_input_is_named() -> None:
    reads = Reads({"image": None, "text": None}, {})  # type: ignore[dict-item]
    found = protocol.explain(BadInput("image: torn"), Asked([{}], several=False), 0, reads)
    assert (found.status, found.about) == (422, {"input": "image"})


def test_multipart_gives_values_by_input(reads: Reads) -> None:
    body, header = form(file("image", "bytes", "image/png"), field("text", "wie groß?"))
    assert protocol.parse(body, header, reads).instances == [{"image": b"bytes", "text": "wie groß?"}]


def test_a_part_needs_no_media_type(reads: Reads) -> None:
    body, header = form(file("image", "bytes", None), file("text", "hi", "text/plain; charset=utf-8"))
    assert protocol.parse(body, header, reads).instances == [{"image": b"bytes", "text": "hi"}]


@pytest.mark.parametrize(
    "left_alone", [field("audio", ""), 'Content-Disposition: form-data; name="audio"; filename=""\n\n']
)
def test_a_file_field_left_alone_is_absent(reads: Reads, left_alone: str) -> None:
    body, header = form(left_alone, field("text", "hi"))
    assert protocol.parse(body, header, reads).instances == [{"text": "hi"}]


@pytest.mark.parametrize(
    ("parts", "status", "says"),
    [
        ([file("image", "<p>", "text/html")], 415, "image: text/html is not read here; send image/*"),
        ([file("text", "hi", "application/pdf")], 415, "text: application/pdf is not read here"),
        ([field("image", "picture.png")], 400, "-F image=@FILE"),
        ([field("imag", "x")], 400, "did you mean image?"),
        ([field("text", "a"), field("text", "b")], 400, "text: given twice"),
        (["Content-Disposition: attachment\n\nx"], 400, "Content-Disposition"),
        (["X: y\n\nx"], 400, "Content-Disposition"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused(
    reads: Reads, parts: list[str], status: int, says: str
) -> None:
    body, header = form(*parts)
    found = problem(lambda: protocol.parse(body, header, reads))
    assert found.status == status
    assert says in found.detail


def test_text_that_is_not_utf8_is_refused(reads: Reads) -> None:
    body, header = form(field("text", "ä"))
    found = problem(lambda: protocol.parse(body.replace("ä".encode(), b"\xe4"), header, reads))
    assert (found.status, found.about) == (422, {"input": "text"})


@pytest.mark.parametrize("cut", [1, 5, 20, 60])
def test_a_multipart_body_that_is_cut_off_is_refused(reads: Reads, cut: int) -> None:
    body, header = form(file("image", "bytes", "image/png"), field("text", "hi"))
    assert problem(lambda: protocol.parse(body[: -cut - 2], header, reads)).status == 400


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 500])
def test_a_boundary_must_be_given_and_right(reads: Reads, header: str) -> None:
    assert problem(lambda: protocol.parse(form(field("text", "hi"))[0], header, reads)).status == 400


@pytest.mark.parametrize("given", [None, "", "text/html", "application/x-www-form-urlencoded", "é"])
def test_other_media_types_are_refused(given: str | None) -> None:
    assert problem(lambda: protocol.media_type(given)).status == 415


def test_compressed_bodies_are_refused() -> None:
    assert problem(lambda: protocol.media_type(JSON, "gzip")).status == 415
    assert protocol.media_type("Application/JSON; charset=utf-8", "identity") == JSON


def test_every_kind_of_problem_has_a_client_or_server_status() -> None:
    for kind, (status, _) in KINDS.items():
        body = Problem(kind, "why").body
        assert 400 <= status < 600
        assert body["type"].endswith(kind)
        assert set(body) == {"type", "title", "status", "detail"}


def test_replies_survive_what_utf8_cannot_say() -> None:
    assert to_json({"detail": "\ud800"}) == b'{"detail":"?"}'
