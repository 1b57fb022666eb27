"""Parsing of requests without a server."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.model.predictor import Predictor
from rayfuse.serving import protocol
from rayfuse.serving.problems import PROBLEM_TYPES, ProblemError, to_json
from rayfuse.serving.protocol import ModelSignature, PredictRequest, RemoteFile

JSON = "application/json"


@pytest.fixture(scope="session")
def reads(predictor: Predictor) -> ModelSignature:
    return ModelSignature(predictor.job.inputs, predictor.preprocessor.modalities)


@pytest.fixture
def parse(reads: ModelSignature) -> Callable[[Any], PredictRequest]:
    def from_json(content: Any) -> PredictRequest:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return protocol.parse(body, JSON, reads)

    return from_json


def problem(call: Callable[[], Any]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value


def form(*parts: str, boundary: str = "x") -> tuple[bytes, str]:
    """Return a multipart body of parts given as headers, an empty line and a content."""
    texts = (part.replace("\n", "\r\n") for part in parts)
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in texts) + f"--{boundary}--\r\n"
    return body.encode(), f"multipart/form-data; boundary={boundary}"


def field(name: str, content: str, extra: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{extra}\n\n{content}'


def file(name: str, content: str, media_type: str | None) -> str:
    declared = f"\nContent-Type: {media_type}" if media_type else ""
    return f'Content-Disposition: form-data; name="{name}"; filename="f"{declared}\n\n{content}'


def test_json_gives_values_by_input(parse: Callable[[Any], PredictRequest]) -> None:
    parsed = parse(
        {"inputs": {"text": "hi", "image": {"b64": "aGk="}, "audio": {"url": "https://x.org/a.wav"}}}
    )
    assert parsed == PredictRequest(
        [{"text": "hi", "image": b"hi", "audio": RemoteFile("https://x.org/a.wav")}], is_batch=False
    )


def test_null_is_absent(parse: Callable[[Any], PredictRequest]) -> None:
    assert parse({"inputs": {"text": "hi", "audio": None}}).instances == [{"text": "hi"}]


def test_instances_are_parsed_like_single_requests(parse: Callable[[Any], PredictRequest]) -> None:
    parsed = parse({"instances": [{"inputs": {"text": "a"}}, {"inputs": {"text": "b"}}]})
    assert parsed == PredictRequest([{"text": "a"}, {"text": "b"}], is_batch=True)


def test_files_in_base64(parse: Callable[[Any], PredictRequest]) -> None:
    content = bytes(range(256))
    plain, safe = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    uri = f"data:image/png;base64,{plain}"
    for value in (
        {"b64": base64.encodebytes(content).decode()},
        {"b64": f"{safe} "},
        {"b64": uri},
        {"url": uri},
    ):
        assert parse({"inputs": {"image": value}}).instances == [{"image": content}]
    assert parse({"inputs": {"image": {"url": "https://x.org/a.png "}}}).instances == [
        {"image": RemoteFile("https://x.org/a.png")}
    ]


@pytest.mark.parametrize(
    ("content", "expected_message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not"),
        (b"[" * 100_000, "nested more than 64 levels deep"),
        (b'{"inputs": {"image": ' + b"[" * 63 + b"]" * 63 + b"}}", "nested more than 64 levels deep"),
        (b'{"inputs": {"text": NaN}}', "NaN is not a JSON number"),
        (b'{"inputs": {"text": ' + b"9" * 10_000 + b"}}", "not JSON"),
        (b'{"inputs": {"text": "a", "text": "b"}}', "given twice"),
        ([], 'the body must be a JSON object {"inputs": {…}}'),
        ({}, 'either "inputs" or "instances"'),
        ({"inputs": {"text": "a"}, "instances": []}, 'either "inputs" or "instances"'),
        ({"input": {"text": "a"}}, "did you mean inputs?"),
        ({"inputs": "text"}, "inputs: must be an object"),
        ({"instances": []}, "not an empty list"),
        ({"instances": [{"text": "a"}]}, 'instances[0]: must be {"inputs": {…}}'),
        ({"instances": [{"inputs": {"text": "a"}}, 5]}, "instances[1]"),
        ({"inputs": {"image": "image.png"}}, 'image: a file must be {"b64": "…"}'),
        ({"inputs": {"image": {"b64": "a", "url": "b"}}}, "image: a file must be"),
        ({"inputs": {"image": {"b64": 5}}}, "image.b64: must be a string, not a number"),
        ({"inputs": {"image": {"b64": "*"}}}, "image.b64: not base64"),
        ({"inputs": {"image": {"b64": "é"}}}, "image.b64: not base64"),
        ({"inputs": {"image": {"url": "data:image/png;base64,*"}}}, "image.url: not base64"),
        ({"inputs": {"image": {"url": "data:image/png"}}}, "image.url: data:image/png: a data: URI without"),
    ],
)
def test_malformed_bodies_are_rejected_with_the_reason(
    parse: Callable[[Any], PredictRequest], content: Any, expected_message: str
) -> None:
    found = problem(lambda: parse(content))
    assert (found.problem_type, found.status) == ("malformed", 400)
    assert expected_message in found.detail


def test_an_unknown_input_names_the_nearest(parse: Callable[[Any], PredictRequest]) -> None:
    found = problem(lambda: parse({"inputs": {"imag": None}}))
    assert found.body["input"] == "imag"
    assert (found.status, found.detail) == (400, "imag: not an input of this model; did you mean image?")


def test_too_many_instances_are_too_large(parse: Callable[[Any], PredictRequest]) -> None:
    found = problem(lambda: parse({"instances": [{"inputs": {"text": "a"}}] * (protocol.MAX_INSTANCES + 1)}))
    assert found.status == 413


def test_json_that_takes_much_memory_is_too_large(reads: ModelSignature) -> None:
    lists = b'{"inputs": {"text": [' + b"[]," * 4_000_000 + b"[]]}}"
    found = problem(lambda: protocol.parse(lists, protocol.JSON, reads))
    assert found.problem_type == "too-large"
    assert found.detail.startswith("the body takes 500 MB of memory as JSON; the maximum is 400 MB")
    text = b'{"inputs": {"text": "' + b"[" * 5_000_000 + b'"}}'
    assert len(protocol.parse(text, protocol.JSON, reads).instances[0]["text"]) == 5_000_000


def test_one_of_many_members_that_is_given_twice_is_named(reads: ModelSignature) -> None:
    """In time that is linear in their number."""
    members = ",".join(f'"{number}":1' for number in range(100_000))
    found = problem(lambda: protocol.parse(f'{{{members},"99999":1}}'.encode(), protocol.JSON, reads))
    assert "member 99999 is given twice" in found.detail


def test_lone_surrogates_are_rejected(parse: Callable[[Any], PredictRequest]) -> None:
    found = problem(lambda: parse(b'{"inputs": {"text": "\\ud800"}}'))
    assert (found.status, found.extensions) == (422, {"input": "text"})


def test_a_required_input_that_is_missing_is_named(
    parse: Callable[[Any], PredictRequest], reads: ModelSignature
) -> None:
    parsed = parse(
        {"instances": [{"inputs": {"text": "a", "image": {"b64": "aGk="}}}, {"inputs": {"text": "b"}}]}
    )
    found = problem(lambda: protocol.check_required(parsed, reads))
    assert found.detail == "instances[1]: image: missing, and this input is required"
    assert found.extensions == {"input": "image", "index": 1}


def test_an_invalid_input_is_named() -> None:
    request = PredictRequest([{}], is_batch=False)
    found = protocol.to_problem(InvalidInputError("not an image", "image"), request, 0)
    assert (found.status, found.detail, found.extensions) == (
        422,
        "image: not an image",
        {"input": "image"},
    )


def test_a_reason_that_starts_with_the_name_of_an_input_names_none() -> None:
    request = PredictRequest([{}], is_batch=False)
    found = protocol.to_problem(InvalidInputError("text: these inputs cannot be processed"), request, 0)
    assert found.extensions == {}


def test_multipart_gives_values_by_input(reads: ModelSignature) -> None:
    body, header = form(file("image", "bytes", "image/png"), field("text", "wie groß?"))
    assert protocol.parse(body, header, reads).instances == [{"image": b"bytes", "text": "wie groß?"}]


def test_a_part_needs_no_media_type(reads: ModelSignature) -> None:
    body, header = form(file("image", "bytes", None), file("text", "hi", "text/plain; charset=utf-8"))
    assert protocol.parse(body, header, reads).instances == [{"image": b"bytes", "text": "hi"}]


@pytest.mark.parametrize("media_type", ["text/markdown", "application/octet-stream", "binary/octet-stream"])
def test_a_text_is_in_any_file(reads: ModelSignature, media_type: str) -> None:
    body, header = form(file("text", "\ufeffhi", media_type), file("image", "bytes", "binary/octet-stream"))
    assert protocol.parse(body, header, reads).instances == [{"image": b"bytes", "text": "hi"}]


@pytest.mark.parametrize(
    "left_alone", [field("audio", ""), 'Content-Disposition: form-data; name="audio"; filename=""\n\n']
)
def test_an_empty_file_field_is_absent(reads: ModelSignature, left_alone: str) -> None:
    body, header = form(left_alone, field("text", "hi"))
    assert protocol.parse(body, header, reads).instances == [{"text": "hi"}]


@pytest.mark.parametrize(
    ("parts", "status", "expected_message"),
    [
        ([file("image", "<p>", "text/html")], 415, "image: text/html is not supported; send image/*"),
        ([file("text", "hi", "application/pdf")], 415, "text: application/pdf is not supported"),
        ([field("image", "image.png")], 400, "-F image=@FILE"),
        ([field("imag", "x")], 400, "did you mean image?"),
        ([field("text", "a"), field("text", "b")], 400, "text: given twice"),
        (["Content-Disposition: attachment\n\nx"], 400, "Content-Disposition"),
        (["X: y\n\nx"], 400, "Content-Disposition"),
    ],
)
def test_unreadable_parts_are_rejected(
    reads: ModelSignature, parts: list[str], status: int, expected_message: str
) -> None:
    body, header = form(*parts)
    found = problem(lambda: protocol.parse(body, header, reads))
    assert found.status == status
    assert expected_message in found.detail


def test_text_that_is_not_utf8_is_rejected(reads: ModelSignature) -> None:
    body, header = form(field("text", "ä"))
    found = problem(lambda: protocol.parse(body.replace("ä".encode(), b"\xe4"), header, reads))
    assert (found.status, found.extensions) == (422, {"input": "text"})


@pytest.mark.parametrize("cut", [1, 5, 20, 60])
def test_truncated_multipart_bodies_are_rejected(reads: ModelSignature, cut: int) -> None:
    body, header = form(file("image", "bytes", "image/png"), field("text", "hi"))
    assert problem(lambda: protocol.parse(body[: -cut - 2], header, reads)).status == 400


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 500])
def test_missing_or_wrong_boundary(reads: ModelSignature, header: str) -> None:
    assert problem(lambda: protocol.parse(form(field("text", "hi"))[0], header, reads)).status == 400


@pytest.mark.parametrize("given", [None, "", "text/html", "application/x-www-form-urlencoded", "é"])
def test_other_media_types_are_rejected(given: str | None) -> None:
    assert problem(lambda: protocol.resolve_media_type(given)).status == 415


def test_compressed_bodies_are_rejected() -> None:
    assert problem(lambda: protocol.resolve_media_type(JSON, "gzip")).status == 415
    assert protocol.resolve_media_type("Application/JSON; charset=utf-8", "identity") == JSON


def test_every_kind_of_problem_has_a_client_or_server_status() -> None:
    for kind, (status, _) in PROBLEM_TYPES.items():
        body = ProblemError(kind, "why").body
        assert 400 <= status < 600
        assert body["type"].endswith(kind)
        assert set(body) == {"type", "title", "status", "detail"}


def test_responses_replace_lone_surrogates() -> None:
    assert to_json({"detail": "\ud800"}) == b'{"detail":"?"}'
