"""Tasks, from the values and names of targets."""

from typing import Any

import pytest
from column_samples import make_sample

from rayfuse.errors import SpecError
from rayfuse.schema_inference.tasks import Task, infer_task
from rayfuse.spec.tasks import TASKS


def task_of(
    values: list[Any], name: str = "target", override: str | None = None, **columns: list[Any]
) -> Task:
    return infer_task(name, make_sample({name: values, **columns}), override)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("target", ["cat", "dog"] * 10, "classification"),
        ("target", [True, False] * 10, "classification"),
        ("target", [0, 1] * 10, "classification"),
        ("label", list(range(10)) * 3, "classification"),
        ("target", list(range(19)) * 3, "classification"),
        ("target", [1, 2, 3, 4, 5] * 4, "ordinal"),
        ("rating", [0, 1, 2, 3] * 4, "ordinal"),
        ("label", [1, 2, 3, 4, 5] * 4, "classification"),
        ("target", ["low", "High", "medium"] * 4, "ordinal"),
        ("target", ["1", "2", "3"] * 4, "ordinal"),
        ("target", [0.5, 1.5, 2.25] * 10, "regression"),
        ("target", [5, 15, 25, 125, 80] * 4, "regression"),
        ("target", list(range(100)), "regression"),
        ("count", [*range(15), *range(5, 10), *range(5, 10)], "regression"),
        ("target", [f"{number}.5" for number in range(30)], "regression"),
        ("target", [["a", "b"], [], ["c"]] * 5, "multi_label"),
        ("target", ["a;b", "c", "b;c", "a;c", "a;b;c", "b", "a"] * 5, "multi_label"),
    ],
)
def test_tasks_by_values(name: str, values: list[Any], kind: str) -> None:
    assert task_of(values, name).type == kind


def test_ordered_words_are_listed_from_the_lowest() -> None:
    assert task_of(["High", "low", "medium"] * 4).options == {"classes": ["low", "medium", "High"]}
    assert task_of(["10", "9", "8"] * 4, override="ordinal").options == {"classes": ["8", "9", "10"]}


def test_words_with_tags_are_tagged() -> None:
    words, tags = [["Bob", "ran"], ["Ann"]] * 5, [["B-name", "O"], ["B-name"]] * 5
    task = task_of(tags, "tags", words=words)
    assert (task.type, task.words_column) == ("tagging", "words")


def test_relevance_beside_queries_is_ranked() -> None:
    task = task_of([0, 1, 2, 0] * 5, "relevance", query_id=["a", "a", "b", "b"] * 5)
    assert (task.type, task.options) == ("ranking", {"query_column": "query_id"})


def test_long_texts_are_found() -> None:
    captions = [f"a photo of the thing number {number}" for number in range(40)]
    assert task_of(captions).type == "retrieval"


def test_rows_without_a_target_are_counted() -> None:
    task = task_of(["cat", "dog", None, "dog"] * 5)
    assert task.missing == 0.25
    assert "25.0% of the rows lack it" in task.note


def test_labels_that_only_other_splits_have_are_counted() -> None:
    sample = make_sample({"target": ["cat", "dog"] * 5})
    assert infer_task("target", sample, None, [["cat", "emu", "cat", "cat"]]).unknown == 0.25


TEXTS = [f"how do I use part {number} of it?" for number in range(30)]
IDS = [number * 7 % 30 for number in range(90)]


def test_ids_are_classes() -> None:
    task = task_of(IDS, text=[TEXTS[number] for number in IDS])
    assert task.type == "classification"
    assert "30 ids, 0 to 29, each of one value of `text`" in task.note
    assert (
        task_of([str(number) for number in IDS], text=[TEXTS[number] for number in IDS]).type
        == "classification"
    )
    assert task_of([number * 977 for number in IDS], name="product_id").type == "classification"
    assert task_of(IDS).type == "regression"
    assert task_of(IDS, text=sorted(TEXTS * 3)).type == "regression"
    assert task_of(IDS, size=["small and blue", "large and red"] * 45).type == "regression"


def test_ids_that_only_other_splits_have_are_the_texts_that_they_stand_for() -> None:
    sample = make_sample({"entry": IDS, "text": [TEXTS[number] for number in IDS]})
    with pytest.raises(
        SpecError, match=r"target `entry`: 67% of .* use --target text, whose texts are found"
    ):
        infer_task("entry", sample, None, [[50, 51, 3]])
    assert infer_task("entry", sample, "classification", [[50, 51, 3]]).unknown == pytest.approx(2 / 3)


def test_rare_labels_of_lists_are_ignored() -> None:
    task = task_of([["a", "b"], ["b"]] * 10 + [["a", "c"]])
    assert task.options == {"min_frequency": 3}
    assert task.unknown == 0
    assert task_of([["a", "b"], ["b"]] * 10).options == {}


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind not in ("generation", "preference")])
def test_every_type_can_be_given(kind: str) -> None:
    values: list[Any] = [["B-a"], ["O"]] * 10 if kind == "tagging" else [1, 0, 2, 1] * 5
    columns = {"words": [["a"], ["b"]] * 10, "query": ["a", "b"] * 10}
    assert task_of(values, override=kind, **columns).type == kind


@pytest.mark.parametrize(
    ("values", "override", "problem"),
    [
        ([None, None], None, "none of the 2 sampled rows has a value"),
        (["a", "a"], None, "all 2 sampled rows have the same value, a"),
        ([f"code{number}" for number in range(40)], None, "nearly every row has its own value"),
        ([[1.5, 2.5], [0.5]], None, "lists of float are no target"),
        ([{"a": 1}, {"a": 2}], None, "it holds values of type dict"),
        (["a", "b"], "classificatio", "not a kind of task; did you mean classification"),
        (["a", "b"], "regression", "'a' is not a number"),
        (["a", "b"], "ranking", "no column names queries"),
        (
            ["a", "b"],
            "generation",
            "a language model and its prompt cannot be chosen by the data; write the job by hand",
        ),
        (["a", "b"], "tagging", "no column has a list with a word for each tag"),
    ],
)
def test_unusable_targets(values: list[Any], override: str | None, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        task_of(values, override=override)
