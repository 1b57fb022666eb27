import pytest

from rayfuse.formatting import first_line, format_bytes, truncate, truncated_repr


def test_truncated_text_has_the_limit() -> None:
    assert truncate("abc", 3) == "abc"
    assert truncate("abcd", 3) == "ab…"
    assert truncated_repr(["a" * 100], 8) == "['aaaaa…"


def test_first_line() -> None:
    assert first_line("\n  one\ntwo") == "one"
    assert first_line("") == ""
    assert len(first_line("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (55_800, "55.8 kB"), (24e6, "24 MB"), (1.5e9, "1.50 GB")]
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text
