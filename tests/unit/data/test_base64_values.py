"""Files as texts, as browsers and libraries write them."""

import base64

import pytest

from rayfuse.data.base64_values import decode_base64, decode_data_uri, is_data_uri

CONTENT = bytes(range(256))
PLAIN = base64.b64encode(CONTENT).decode()
URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f" {PLAIN}\n",
        base64.encodebytes(CONTENT).decode().replace("\n", "\r\n"),
        URL_SAFE,
        URL_SAFE.rstrip("="),
        f"{PLAIN} \t",
        f"data:image/png;base64,{PLAIN}",
        f"DATA:;BASE64,{URL_SAFE}",
        f" data:image/png;name=a.png;base64,{PLAIN.replace('+', '%2B').replace('=', '%3D')} ",
    ],
)
def test_base64(text: str) -> None:
    assert decode_base64(text) == CONTENT


@pytest.mark.parametrize("text", ["*", "é", "aGk=x", "abcde", "data:image/png;base64,*"])
def test_what_is_not_base64_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not base64: "):
        decode_base64(text)


def test_data_uris_without_base64() -> None:
    assert decode_data_uri("data:text/csv,a%2Cb%0A1,2") == b"a,b\n1,2"
    with pytest.raises(ValueError, match=r"a data: URI without a comma; write data:image/png;base64,…"):
        decode_data_uri("data:image/png")


def test_only_data_uris_are_recognized() -> None:
    assert is_data_uri("data:,")
    assert is_data_uri(" Data:image/png;base64,aGk=")
    assert not any(map(is_data_uri, ("data/a.png", "https://x.org/data:", "", PLAIN)))


def test_percent_escapes_at_any_place_are_decoded() -> None:
    for length in (65_534, 65_535, 65_536, 131_070):
        text = "a" * length + "%41%4"
        assert decode_data_uri(f"data:,{text}") == b"a" * length + b"A%4"
