"""Durations, sizes, fractions and names, as users write them."""

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from rayfuse.spec.base import Bytes, Fraction, Key, Name, Seconds, SpecModel


def read(kind: object, value: object) -> object:
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 0.005), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("7", 7), (7, 7), (0.5, 0.5)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert read(Seconds, text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20MB", 20_000_000),
        ("20M", 20_000_000),
        ("1GiB", 2**30),
        ("1.5KiB", 1536),
        ("512B", 512),
        (512, 512),
        ("9", 9),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert read(Bytes, text) == size


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("100%", 1), ("0.5", 0.5), ("5e-2", 0.05), (0, 0)])
def test_fractions(text: str | float, share: float) -> None:
    assert read(Fraction, text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Seconds, "5 minutes"),
        (Seconds, "-5s"),
        (Seconds, -5),
        (Seconds, ""),
        (Bytes, "20 apples"),
        (Bytes, "MB"),
        (Bytes, -1),
        (Fraction, "150%"),
        (Fraction, 1.5),
        (Fraction, "half"),
        (Name, "-x"),
        (Name, "a/b"),
        (Name, "x" * 64),
        (Key, "my-input"),
        (Key, "1st"),
    ],
)
def test_missing_values(kind: object, value: object) -> None:
    with pytest.raises(ValidationError):
        read(kind, value)


class Tree(SpecModel):
    """Options of a user's part, which contain each other."""

    size: int | float = 1
    count: int = 1
    weights: dict[str, tuple[float, ...]] = Field({})
    flag: bool = False
    children: "list[Tree]" = Field([])


@pytest.mark.parametrize(
    "content",
    [
        {"size": True},
        {"count": 2**64},
        {"weights": {"a": [1, False]}},
        {"children": [{"children": [{"size": True}]}]},
    ],
)
def test_booleans_and_huge_integers_are_no_numbers_in_any_field(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="must be a number, not|must have at most 64 bits"):
        Tree.model_validate(content)


def test_other_numbers_keep_their_type() -> None:
    tree = Tree.model_validate(
        {"size": 3, "count": "2", "weights": {"a": [1, "0.5"]}, "flag": True, "children": [{"size": 0.5}]}
    )
    assert tree.model_dump() == {
        "size": 3,
        "count": 2,
        "weights": {"a": (1.0, 0.5)},
        "flag": True,
        "children": [{"size": 0.5, "count": 1, "weights": {}, "flag": False, "children": []}],
    }
    assert isinstance(tree.size, int)
