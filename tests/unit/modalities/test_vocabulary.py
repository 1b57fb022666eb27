"""Names of categories, ids and groups: equal values have one name, whatever the type or file is."""

from decimal import Decimal
from typing import Any

import pytest

from rayfuse.modalities.vocabulary import UnknownValues, canonical_name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("3", [3, 3.0, "3", "3.0", " 3 ", Decimal("3.00")]),
        ("2.5", [2.5, "2.5", "2.50", Decimal("2.5")]),
        ("True", [True, "True", "true", "TRUE", "true "]),
        ("False", [False, "False", "false", "FALSE"]),
        ("10000000000000000", [10**16, 1e16, "10000000000000000", Decimal(10**16)]),
        ("9007199254740993", [2**53 + 1, str(2**53 + 1)]),
        ("caf\u00e9", ["caf\u00e9", "cafe\u0301", "\u00a0caf\u00e9\n"]),
        ("007", ["007"]),
        ("tRUE", ["tRUE"]),
    ],
)
def test_equal_values_have_one_name(name: str, values: list[Any]) -> None:
    assert {canonical_name(value) for value in values} == {name}


def test_values_of_a_vocabulary_are_known_in_any_form() -> None:
    unknown = UnknownValues(["true", "3.0"])
    for value in (True, 3, "x"):
        unknown.add(canonical_name(value))
    assert str(unknown) == "1 of 3 values are unknown: 'x' (1)"
