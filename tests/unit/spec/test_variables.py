"""Variables in specs: substituted, escaped, or refused; a misspelled one never becomes a value."""

from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.variables import escape_dollars, is_variable, substitute

REMEDY = "is not a variable; write ${NAME}, ${NAME:-default}, or $$ for a dollar sign"


def error_of(node: Any, **environment: str) -> str:
    with pytest.raises(SpecError) as caught:
        substitute(node, environment, "x.yaml")
    return str(caught.value)


def test_variables_and_defaults() -> None:
    node = {"a": ["${A}/${B:-b}", 3, None], "${K}": "${B:-}"}
    assert substitute(node, {"A": "1", "K": "k"}, "x.yaml") == {"a": ["1/b", 3, None], "k": ""}


def test_two_dollar_signs_are_one() -> None:
    assert substitute("$$5 $${A} $$$$", {"A": "1"}, "x.yaml") == "$5 ${A} $$"


def test_values_are_not_substituted_again() -> None:
    assert substitute("${A}", {"A": "${B} $x"}, "x.yaml") == "${B} $x"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("${RAYFUSE-API-KEYS}", "`${RAYFUSE-API-KEYS}`"),
        ("${RAYFUSE_API_KEYS", "`${RAYFUSE_API_KEYS`"),
        ("${A-}", "`${A-}`"),
        ("${A:-${B}}", "`${A:-${B}`"),
        ("${}", "`${}`"),
        ("${ A }", "`${ A }`"),
        ("${" + "A" * 500, "`${" + "A" * 58 + "…`"),
        ("$RAYFUSE_API_KEYS", "a `$`"),
        ("$(date)", "a `$`"),
        ("costs 5$", "a `$`"),
    ],
)
def test_any_other_dollar_sign_is_refused(text: str, written: str) -> None:
    assert error_of({"auth": {"keys": [text]}}) == f"x.yaml: auth.keys.0: {written} {REMEDY}"
    assert error_of({text: 1}).endswith(f"{written} {REMEDY}")


def test_what_follows_a_dollar_sign_is_not_shown() -> None:
    assert "word" not in error_of({"keys": "pa$word"})


def test_a_key_that_two_variables_give() -> None:
    assert error_of({"a": {"${A}": 1, "b": 2}}, A="b").startswith("x.yaml: a.b: the key is given twice")


@pytest.mark.parametrize("value", ["a\x1b[2J", "\udcff"])
def test_values_of_variables_are_text(value: str) -> None:
    assert error_of({"a": "${A}"}, A=value) == (
        "x.yaml: a: the environment variable A holds control characters or is not UTF-8; set it again"
    )


def test_escaped_texts_are_restored() -> None:
    node = {"a$": ["$x", "$$", "5 $", "${B}"]}
    assert escape_dollars(node) == {"a$$": ["$$x", "$$$$", "5 $$", "${B}"]}
    assert substitute(escape_dollars(node), {"B": "b"}, "x.yaml") == {"a$": ["$x", "$$", "5 $", "b"]}


def test_is_variable() -> None:
    assert is_variable("${A}")
    assert is_variable("${A:-b}")
    assert not is_variable("${A}b")
    assert not is_variable("${A-}")
