"""Columns that repeat others, and columns that give the target away."""

import random
from typing import Any

import pytest
from column_samples import make_sample

from rayfuse.errors import SpecError
from rayfuse.schema_inference.choice import choose_columns
from rayfuse.schema_inference.kinds import infer_column
from rayfuse.schema_inference.relations import describe_leak, find_copies

RNG = random.Random(0)
LABELS = [RNG.choice(["cat", "dog", "emu"]) for _ in range(200)]
NUMBERS = [RNG.uniform(0, 100) for _ in range(200)]
NOISE = [RNG.choice(["x", "y", "z"]) for _ in range(200)]


def test_ids_of_texts_are_left_out() -> None:
    ids = [place % 20 for place in range(100)]
    texts = [f"the text with the number {number}" for number in ids]
    found = infer_column("entry", make_sample({"entry": ids, "text": texts}))
    assert (found.kind, found.note, found.is_group) == ("id", "ids, each of one value of `text`", True)
    assert infer_column("entry", make_sample({"entry": ids, "text": texts[1:] + texts[:1]})).kind == "id"
    assert infer_column("entry", make_sample({"entry": ids, "text": sorted(texts)})).kind == "number"
    assert (
        infer_column("entry", make_sample({"entry": ids, "size": [f"size {number}" for number in ids]})).kind
        == "number"
    )


def leak(values: list[Any], targets: list[Any]) -> str | None:
    column = infer_column("column", make_sample({"column": values}))
    return describe_leak(column, values, "target", targets)


@pytest.mark.parametrize(
    ("values", "targets", "problem"),
    [
        (LABELS, LABELS, "a copy of `target`"),
        ([label.upper() for label in LABELS], LABELS, "each of its 3 values stands for one value"),
        (
            [len(label) * 0 + "cde".index(label[0]) for label in LABELS],
            LABELS,
            "each of its 3 values stands for",
        ),
        (
            [label + str(place % 2) for place, label in enumerate(LABELS)],
            LABELS,
            "each of its 6 values occurs with a single value",
        ),
        (NUMBERS, [str(number) for number in NUMBERS], "equal to `target` in 100%"),
        ([2 * number + 1 for number in NUMBERS], NUMBERS, "a linear function of `target`"),
        ([min(number, 70) for number in NUMBERS], NUMBERS, "equal to `target` in"),
        (NOISE, LABELS, None),
        ([number**0.5 for number in NUMBERS], NUMBERS, None),
        ([f"the {label} number {place}" for place, label in enumerate(LABELS)], LABELS, None),
        (LABELS[:5], LABELS[:5], None),
    ],
)
def test_leaks(values: list[Any], targets: list[Any], problem: str | None) -> None:
    found = leak(values, targets)
    assert found is None if problem is None else problem in (found or "")


def test_copies_have_equal_values_in_all_rows() -> None:
    columns = {"a": [1, 2, None], "b": [1.0, 2.0, None], "c": [1, 2, 3], "d": [None] * 3, "e": [None] * 3}
    assert find_copies(columns) == {"b": "a"}


def choose(columns: dict[str, list[Any]], exclude: tuple[str, ...] = ()) -> Any:
    sample = make_sample({**columns, "target": LABELS})
    inferred = {name: infer_column(name, sample) for name in columns}
    return choose_columns(inferred, sample, ["target"], exclude)


def test_the_reason_of_each_column_that_is_left_out() -> None:
    codes = [label.upper() for label in LABELS]
    columns = {
        "": NOISE,
        "kind": NOISE,
        "again": NOISE,
        "code": codes,
        "row_id": list(range(200)),
        "size": NUMBERS,
    }
    choice = choose(columns, exclude=("size",))
    assert [column.name for column in choice.inputs] == ["kind"]
    assert choice.left_out[""] == "has no name, so it is taken as an index"
    assert choice.left_out["again"].startswith("a copy of")
    assert "WARNING: seems to give the target away" in choice.left_out["code"]
    assert choice.left_out["row_id"].startswith("numbers the rows")
    assert choice.left_out["size"] == "excluded"
    assert choice.warnings == [
        "`code` is left out, as it seems to give the target away: each of its 3 values stands for one value of `target`"
    ]


def test_a_column_that_gives_the_target_away_is_taken_if_there_is_no_other() -> None:
    choice = choose({"code": [label.upper() for label in LABELS]})
    assert [column.name for column in choice.inputs] == ["code"]
    assert "taken, as there is no other input" in choice.inputs[0].note


def test_ids_that_repeat_are_categories_if_there_is_no_other_column() -> None:
    choice = choose({"user_id": [number % 60 for number in range(200)]})
    assert [(column.name, column.kind) for column in choice.inputs] == [("user_id", "category")]


def test_no_usable_column() -> None:
    with pytest.raises(SpecError, match="no column can be an input.*\n  same: constant: always x"):
        choose({"same": ["x"] * 200})
    with pytest.raises(SpecError, match="there is no other column"):
        choose({})
