"""Classes and numbers to learn."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rayfuse.errors import BadInput, DataError
from rayfuse.spec.tasks import ClassificationTask, RegressionTask


def classification(classes: list[Any] | None = None) -> ClassificationTask:
    content = {"type": "classification", "column": "label", "classes": classes}
    return TypeAdapter(ClassificationTask).validate_python(content)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b", None], ["a", "b"]),
        ([2, 1, 10], [1, 2, 10]),
        ([2.0, 1, 10.0, float("nan")], [1, 2, 10]),
        ([True, False], [False, True]),
        ([1, "x", True], [True, 1, "x"]),
        (["x", "y", 1.5, ["z"], {}], ["x", "y"]),
        (["x", "y", "\ud800"], ["x", "y"]),
    ],
)
def test_classes_are_found_and_sorted(values: list[Any], classes: list[Any]) -> None:
    assert list(map(repr, classification().fitted(values).classes or [])) == list(map(repr, classes))


def test_listed_classes_stay() -> None:
    task = classification(["b", "a"])
    assert task.fitted(["c"]) is task
    assert [task.target("b"), task.target("a")] == [0, 1]


def test_classes_of_one_name_are_refused() -> None:
    """An answer names its scores by the text of the class."""
    for classes in ([1, "1"], ["a", "a"], [True, "True"]):
        with pytest.raises(ValidationError, match="would have the same name in an answer"):
            classification(classes)
    with pytest.raises(DataError, match="column `label`: holds 1 and '1'; write one of them everywhere"):
        classification().fitted([1, "1", 2])


@pytest.mark.parametrize(("label", "index"), [(7, 0), (7.0, 0), ("7.0", 1), (True, 2), (False, 3)])
def test_labels_of_tables(label: Any, index: int) -> None:
    assert classification([7, "7.0", True, False]).target(label) == index


@pytest.mark.parametrize("label", ["7", 8, 7.5, 1, 0, [7], {"a": 1}, float("inf"), b"x"])
def test_labels_that_are_no_class(label: Any) -> None:
    with pytest.raises(
        BadInput, match="is not one of the 4 classes: 7, '7.0', True, False; correct the row, or"
    ):
        classification([7, "7.0", True, False]).target(label)


def test_messages_stay_short() -> None:
    task = classification([f"class {i} {'x' * 100}" for i in range(100)])
    with pytest.raises(BadInput) as refused:
        task.target("y" * 10_000)
    assert len(str(refused.value)) < 700
    with pytest.raises(BadInput, match="^the label is missing$"):
        task.target(None)


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (-0.5, -0.5), (Decimal("1.25"), 1.25), (2**60, 2.0**60)]
)
def test_numbers(value: Any, number: float) -> None:
    found = RegressionTask(type="regression", column="x").target(value)
    assert (found, type(found)) == (number, float)


@pytest.mark.parametrize("value", ["1", True, 10**400, 1e39, float("inf"), Decimal("Infinity"), [1], b"1"])
def test_what_is_no_number(value: Any) -> None:
    task = RegressionTask(type="regression", column="x")
    with pytest.raises(BadInput, match="is not a finite number"):
        task.target(value)
    with pytest.raises(DataError, match="column `x`: no numbers in the training rows"):
        task.fitted([value])


def test_mean_and_deviation() -> None:
    task = RegressionTask(type="regression", column="x").fitted([1, 3, None, "x", 10**400])
    assert (task.mean, task.deviation) == (2, 1)
    assert RegressionTask(type="regression", column="x").fitted([5, 5]).deviation == 1
    given = RegressionTask(type="regression", column="x", mean=7.0)
    assert (given.fitted([1, 3]).mean, given.fitted([1, 3]).deviation) == (7, 1)
