"""Strict YAML: the core schema of YAML 1.2, and limits that hold while a text is parsed."""

import math
from typing import Any

import pytest
import yaml

from rayfuse.spec.yaml_io import MAX_DEPTH, MAX_NODES, YamlError, dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("Null", None),
        ("True", True),
        ("yes", "yes"),
        ("off", "off"),
        ("12", 12),
        ("-012", -12),
        ("0o14", 12),
        ("0xFF", 255),
        ("18446744073709551615", 2**64 - 1),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("+1.", 1.0),
        (".Inf", math.inf),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-13-45", "2026-13-45"),
        ("=", "="),
        ("'12'", "12"),
        ("! 12", "12"),
        ("!!str 12", "12"),
        ("!!int '12'", 12),
        ("!!float 12", 12.0),
        ("!!null ''", None),
        ("!!map {a: !!seq [b]}", {"a": ["b"]}),
    ],
)
def test_values_have_the_types_of_the_core_schema(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert (found, type(found)) == (value, type(value))


def test_nan() -> None:
    assert math.isnan(load_yaml(".NaN"))


def test_merge_keys() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {y: 4, <<: *a}"
    found = load_yaml(text)
    assert found["c"] == {"x": 1, "y": 1, "z": 3}
    assert found["d"] == {"x": 1, "y": 4}


def test_aliases_are_copies() -> None:
    found = load_yaml("a: &a [1]\nb: *a")
    found["a"].append(2)
    assert found["b"] == [1]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\na: 2", 2, "key `a` is given twice; keep one, or rename the other"),
        ("{<<: {a: 1}, <<: {b: 1}}", 1, "key `<<` is given twice; keep one, or rename the other"),
        ("<<: 3", 1, "`<<` merges mappings; write it as in `<<: *base`"),
        ("a: 1\n{b: c}: 2", 2, "a key must be text; put it in quotes"),
        ("1: 2", 1, "a key must be text; put `1` in quotes"),
        ("true: 2", 1, "a key must be text; put `true` in quotes"),
        ("a: *b", 1, "`*b` has no anchor above it; add &b to the value that it repeats"),
        ("a: &a [*a]", 1, "`*a` is inside its own anchor; write the values out"),
        ("a: !!float abc", 1, "`abc` is not of the type !!float; remove the tag"),
        ("a: !!timestamp abc", 1, "the tag `!!timestamp` is not supported here; remove it"),
        ("a: !!set {b}", 1, "the tag `!!set` is not supported here; remove it"),
        ("a: !own b", 1, "the tag `!own` is not supported here; remove it"),
        ("a: !!int [b]", 1, "the tag `!!int` is not supported here; remove it"),
        ("a: " + "9" * 6000, 1, "99999999999999999999999999999… has more than 64 bits; put it in quotes if it is a name"),
        ("a: 0x" + "f" * 17, 1, "0xfffffffffffffffff has more than 64 bits; put it in quotes if it is a name"),
        ('a: "\\e[2J"', 1, "the character \\x1b is not allowed; remove it"),
        ("a: 1\nb: \x07", 2, "the character \\x07 is not allowed; remove it"),
        ("a: \ud800", 1, "the character \\ud800 is not allowed; remove it"),
        ("a: 1\n---\nb: 1", 2, "a second document begins; write each spec into a separate file"),
    ],
)  # fmt: skip
def test_errors_have_a_line_and_a_remedy(text: str, line: int, problem: str) -> None:
    with pytest.raises(YamlError) as caught:
        load_yaml(text)
    assert (caught.value.line, str(caught.value)) == (line, problem)


def test_a_surrogate_cannot_be_escaped() -> None:
    with pytest.raises(YamlError):
        load_yaml('a: "\\ud800"')


def test_depth_is_bounded() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load_yaml(deepest) is not None
    chain = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, MAX_DEPTH + 2))
    for text in (f"[{deepest}]", "[" * 100_000, chain):
        with pytest.raises(YamlError, match=f"nested more than {MAX_DEPTH} levels deep"):
            load_yaml(text)


def test_the_number_of_nodes_is_bounded() -> None:
    bomb = "b0: &b0 [lol]\n" + "".join(
        f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 11)
    )
    for text in (f"[{'1,' * MAX_NODES}]", bomb):
        with pytest.raises(YamlError, match="more than 50,000 keys and values"):
            load_yaml(text)


@pytest.mark.parametrize(
    "text", ["yes", "null", "~", "", "1e3", "1e-4", "0o14", "012", "1_000", "1:30", "2026-01-01", "<<", "=", ".5", "a: b", "$x"]
)  # fmt: skip
def test_texts_are_dumped_as_texts_for_either_version_of_yaml(text: str) -> None:
    dumped = dump_yaml({text: [text]})
    assert load_yaml(dumped) == {text: [text]}
    assert yaml.safe_load(dumped) == {text: [text]}


def test_numbers_are_dumped_as_numbers() -> None:
    values = [1e-5, 1e16, 0.1, 3, -2.0, True, None, math.inf]
    assert load_yaml(dump_yaml(values)) == values
