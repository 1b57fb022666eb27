"""Targets of tasks: classes and numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.spec.cells import CellFormat, cell_parser
from rayfuse.spec.encoders import ConvEncoderConfig
from rayfuse.spec.inputs import TextInput
from rayfuse.spec.tasks import (
    ClassificationTaskConfig,
    CustomTaskConfig,
    MatchingTaskConfig,
    MultiLabelTaskConfig,
    OrdinalTaskConfig,
    RankingTaskConfig,
    RegressionTaskConfig,
    RetrievalTaskConfig,
    TaggingTaskConfig,
)
from rayfuse.spec.tasks.numbers import hash_to_floats


@dataclass(frozen=True)
class Row:
    values: dict[str, Any]
    file: str
    line: int

    @property
    def origin(self) -> str:
        return f"{self.file}:{self.line}"


def rows(values: Sequence[Any], column: str = "label", file: str = "a") -> list[Row]:
    return [Row({column: value}, file, i) for i, value in enumerate(values, start=1)]


def classification(classes: list[Any] | None = None) -> ClassificationTaskConfig:
    content = {"type": "classification", "column": "label", "classes": classes}
    return TypeAdapter(ClassificationTaskConfig).validate_python(content)


def test_classes_that_yaml_read_as_booleans_are_recognized() -> None:
    task = classification([False, True])
    with pytest.raises(
        DataError, match=r"the labels are 'no' and 'yes', and `classes` has false and true: .* quotes"
    ):
        task.fit(rows(["no", "yes", "no"]))
    assert task.fit(rows([True, False])).classes == [False, True]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b", None], ["a", "b"]),
        ([2, 1, 10], [1, 2, 10]),
        ([2.0, 1, 10.0, float("nan")], [1, 2, 10]),
        ([True, False], [False, True]),
        ([Decimal(1), 0, 1.0, Decimal("1.0")], [0, 1]),
        ([1, "x", True], [True, 1, "x"]),
        (["yes", "yes ", "no"], ["no", "yes"]),
        (["caf\u00e9", "cafe\u0301", "tea"], ["caf\u00e9", "tea"]),
        (["x", "y", 1.5, ["z"], {}], ["x", "y"]),
        (["x", "y", "\ud800"], ["x", "y"]),
    ],
)
def test_classes_are_found_and_sorted(values: list[Any], classes: list[Any]) -> None:
    assert list(map(repr, classification().fit(rows(values)).classes or [])) == list(map(repr, classes))


@pytest.mark.parametrize("values", [[2, 1, "2.0"], ["2", 2, 1]])
def test_a_number_and_its_text_are_no_two_classes(values: list[Any]) -> None:
    with pytest.raises(DataError, match=r"holds 2 \(.*\) and '2(\.0)?' \(.*\), one class in two forms"):
        classification().fit(rows(values))


@pytest.mark.parametrize("values", [["true", "false", "True"], ["FALSE", "x", "false"]])
def test_a_boolean_in_two_forms_is_no_two_classes(values: list[Any]) -> None:
    with pytest.raises(DataError, match="one class in two forms; write one of them everywhere"):
        classification().fit(rows(values))


def test_listed_classes_are_labels_in_any_form_of_unicode() -> None:
    task = classification(["cafe\u0301", "tea "])
    assert [task.target(label) for label in ("caf\u00e9", "cafe\u0301", "tea")] == [0, 0, 1]
    weighted = task.model_copy(update={"class_weights": "balanced"}).fit(rows(["caf\u00e9", "tea", "tea"]))
    assert weighted.weights_of(weighted.class_names) == [1.5, 0.75]
    with pytest.raises(ValidationError, match="have the same name in predictions"):
        classification(["cafe\u0301", "caf\u00e9"])


def test_listed_classes_stay() -> None:
    task = classification(["b", "a"])
    assert task.fit(rows(["c"])) is task
    assert [task.target("b"), task.target("a")] == [0, 1]


def test_classes_with_the_same_name_are_rejected() -> None:
    """A prediction names its scores by the text of the class."""
    for classes in ([1, "1"], ["a", "a"], [True, "True"]):
        with pytest.raises(ValidationError, match="have the same name in predictions"):
            classification(classes)
    with pytest.raises(DataError, match="column `label`: holds 1 \\(a:1\\) and '1' \\(a:2\\), one class in"):
        classification().fit(rows([1, "1", 2]))


@pytest.mark.parametrize(("label", "index"), [(7, 0), (7.0, 0), ("7.0", 1), (True, 2), (False, 3)])
def test_labels_of_tables(label: Any, index: int) -> None:
    assert classification([7, "7.0", True, False]).target(label) == index


@pytest.mark.parametrize("label", [8, 7.5, 1, 0, [7], {"a": 1}, float("inf"), b"x"])
def test_invalid_labels(label: Any) -> None:
    with pytest.raises(
        InvalidInputError, match="is not one of the 4 classes: 7, '7.0', True, False; correct the row, or"
    ):
        classification([7, "7.0", True, False]).target(label)


def test_messages_stay_short() -> None:
    task = classification([f"class {i} {'x' * 100}" for i in range(100)])
    with pytest.raises(InvalidInputError) as caught:
        task.target("y" * 10_000)
    assert len(str(caught.value)) < 700
    with pytest.raises(InvalidInputError, match=r"^the label is missing \(cells such as NA"):
        task.target(None)


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (-0.5, -0.5), (Decimal("1.25"), 1.25), (2**60, 2.0**60)]
)
def test_numbers(value: Any, number: float) -> None:
    found = RegressionTaskConfig(type="regression", column="x").target(value)
    assert (found, type(found)) == (number, float)


@pytest.mark.parametrize("value", ["1", True, 10**400, 1e39, float("inf"), Decimal("Infinity"), [1], b"1"])
def test_invalid_numbers(value: Any) -> None:
    task = RegressionTaskConfig(type="regression", column="x")
    with pytest.raises(InvalidInputError, match="is not a finite number"):
        task.target(value)
    with pytest.raises(DataError, match="column `x`: no numbers in the training rows"):
        task.fit(rows([value], "x"))


def test_mean_and_deviation() -> None:
    task = RegressionTaskConfig(type="regression", column="x").fit(rows([1, 3, None, "x", 10**400], "x"))
    assert (task.mean, task.std) == (2, 1)
    assert RegressionTaskConfig(type="regression", column="x").fit(rows([5, 5], "x")).std == 1
    given = RegressionTaskConfig(type="regression", column="x", mean=7.0)
    found = given.fit(rows([1, 3], "x"))
    assert (found.mean, found.std) == (7, 1)


@pytest.mark.parametrize(
    ("first", "second"), [([0, 1], ["no", "yes"]), (["a", "b"], [1.5, 2.5]), ([0, 1], [True])]
)
def test_a_label_type_that_changes_between_files_names_both(first: list[Any], second: list[Any]) -> None:
    both = [*rows(first, file="a.jsonl"), *rows(second, file="b.jsonl")]
    with pytest.raises(DataError) as caught:
        classification().fit(both)
    text = str(caught.value)
    assert f"column `label`: {first[0]!r} (a.jsonl:1) is " in text
    assert f"{second[0]!r} (b.jsonl:1) is " in text
    assert text.endswith("write the labels in one type in all files, or list all under `classes`")
    assert classification(["a", 1]).fit(both).classes == ["a", 1]


def test_files_whose_labels_share_a_type_may_hold_others() -> None:
    both = [*rows([1, "many"], file="a.csv"), *rows([2, 3], file="b.csv")]
    assert classification().fit(both).classes == [1, 2, 3, "many"]


def test_a_label_of_another_type_than_its_class_is_reported() -> None:
    with pytest.raises(
        InvalidInputError, match="the class 7 is an integer, this is a text; write the same type everywhere"
    ):
        classification([7, 8]).target("7")


@pytest.mark.parametrize("given", ["balanced", {"a": 2.0}])
def test_class_weights(given: Any) -> None:
    task = ClassificationTaskConfig(type="classification", column="label", class_weights=given)
    fitted = task.fit(rows(["a", "b", "b", "b", None]))
    assert fitted.weights_of(fitted.class_names) == ([2.0, 4 / 6] if given == "balanced" else [2.0, 1.0])
    assert ClassificationTaskConfig.model_validate(fitted.model_dump()) == fitted


def test_weights_of_unknown_classes_are_rejected() -> None:
    task = ClassificationTaskConfig(type="classification", column="label", class_weights={"c": 2.0})
    with pytest.raises(DataError, match="class_weights: 'c' is not a class; one of: 'a', 'b'"):
        task.fit(rows(["a", "b"]))


def test_multi_label() -> None:
    task = MultiLabelTaskConfig(type="multi_label", column="label", class_weights="balanced")
    fitted = task.fit(rows([["b", "a"], ["b"], [], None]))
    assert fitted.classes == ["a", "b"]
    assert fitted.weights_of(fitted.class_names) == [3, 1]  # rows without, for each with
    found = [fitted.target(value).positions for value in (["b"], ["b", "a", "b"], [])]
    assert found == [(1,), (0, 1), ()]
    assert fitted.target(["b"]).size == 2
    for value, problem in (
        (None, r"the labels are missing; write \[\]"),
        ("a", "is not a list of labels"),
        (["c"], "not one of the 2"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            fitted.target(value)
    split = MultiLabelTaskConfig(type="multi_label", column="label", separator="|").fit(
        rows(["x|y", "y", None])
    )
    assert [split.target(value).positions for value in ("y | x", None, "")] == [(0, 1), (), ()]
    assert cell_parser(split.columns["label"], CellFormat())("NA") is None
    numbers = split.model_copy(update={"classes": None}).fit(rows(["1|2", "2.0", 1]))
    assert numbers.classes == ["1", "2"]
    spaced = task.fit(rows([["a ", "b"], ["a"]]))
    assert spaced.classes == ["a", "b"]


def test_ordinal_classes_have_an_order() -> None:
    task = OrdinalTaskConfig(type="ordinal", column="label")
    assert task.fit(rows([3, 1, 2.0])).classes == [1, 2, 3]
    with pytest.raises(DataError, match="'high' is a text, whose order is unknown; list all"):
        task.fit(rows(["low", "high"]))


WORDS = TextInput(type="text", encoder=ConvEncoderConfig(type="conv"), column="words")


def tagging(**options: Any) -> TaggingTaskConfig:
    return TaggingTaskConfig(type="tagging", column="label", input="text", **options)


def test_tags() -> None:
    task = tagging().fit(rows([["O", "B-per", "I-loc"], ["O"], None, "O", ["nonsense"]]))
    assert task.entities == ["loc", "per"]
    assert task.tags == ["O", "B-loc", "I-loc", "B-per", "I-per"]
    read = {"label": ["O", "I-per"], "words": ["a", "b"]}
    assert task.read(read, {"text": WORDS}) == [0, 4]
    assert task.read({**read, "words": None}, {"text": WORDS}) == [0, 4]
    for change, problem in (
        ({"words": ["a"]}, "2 tags for the 1 word of `text`"),
        ({"words": "a b"}, "`text` is not a list of words"),
        ({"label": ["O", "X"]}, "tag 'X' is not one of: 'O', 'B-loc'"),
        ({"label": None}, "the tags are missing"),
        ({"label": "O O"}, "'O O' is not a list of tags"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            task.read(read | change, {"text": WORDS})
    with pytest.raises(DataError, match="no tag in the training rows is B-TYPE or I-TYPE"):
        tagging().fit(rows([["O"]]))
    weighted = tagging(class_weights="balanced").fit(rows([["O", "O", "B-x", "I-x"]]))
    assert weighted.weights_of(weighted.tags) == pytest.approx([4 / 6, 4 / 3, 4 / 3])


def test_pairs_that_are_true_or_false() -> None:
    task = MatchingTaskConfig(type="matching", inputs=("a", "b"), column="label")
    values: list[Any] = [True, 1, 1.0, "true", False, 0, "False"]
    assert [task.read({"label": value}, {}) for value in values] == [1, 1, 1, 1, 0, 0, 0]
    for value in (2, "yes", None, []):
        with pytest.raises(InvalidInputError):
            task.read({"label": value}, {})
    assert task.fit(rows([1, 0])) is task
    with pytest.raises(
        DataError, match="all training rows are true pairs, and both are needed; leave `column` out"
    ):
        task.fit(rows([1, True]))
    unlabelled = MatchingTaskConfig(type="matching", inputs=("a", "b"))
    assert unlabelled.read({}, {}) == 1
    assert unlabelled.columns == {}


def test_groups_in_retrieval() -> None:
    task = RetrievalTaskConfig(type="retrieval", inputs=("a", "b"), column="label")
    numbers = [task.read({"label": value}, {}) for value in (7, 7.0, "7", "8")]
    assert numbers[0] == numbers[1] == numbers[2] != numbers[3]
    alone = [
        task.read({"label": None}, {}),
        RetrievalTaskConfig(type="retrieval", inputs=("a", "b")).read({}, {}),
    ]
    assert all(number != number for target in alone for number in target)  # NaN


def test_group_numbers_are_exact_in_float32() -> None:
    numbers = {value: hash_to_floats(value) for value in map(str, range(2000))}
    assert len(set(map(tuple, numbers.values()))) == 2000
    assert all(0 <= part < 2**24 and part == int(part) for pair in numbers.values() for part in pair)
    assert hash_to_floats("query 1") == [6359550.0, 8098504.0]  # the same in every process, for ever


def ranking(**options: Any) -> RankingTaskConfig:
    return RankingTaskConfig(type="ranking", column="label", query_column="query", **options)


def test_ranking_rows() -> None:
    assert ranking().read({"label": 2, "query": "q"}, {}) == [2.0, *hash_to_floats("q")]
    for values, problem in (
        ({"label": -1, "query": "q"}, "relevance -1 is not a finite number of at least 0"),
        ({"label": None, "query": "q"}, "the relevance is missing"),
        ({"label": 1}, r"the query \(column query\) is missing"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            ranking().read(values, {})
    alike = [Row({"label": n, "query": n}, "a", n) for n in range(4)]
    with pytest.raises(
        DataError, match=r"no query \(column `query`\) has training rows of different relevance"
    ):
        ranking().fit(alike)


def problems(task: dict[str, Any], encoder: dict[str, Any] | None = None) -> str:
    """Return the error message of a job with one task."""
    from rayfuse.errors import SpecError
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    text = {"type": "text", "encoder": encoder or {"type": "conv"}}
    job = {
        "kind": "job",
        "name": "tiny",
        "data": {"train": "/train.jsonl"},
        "inputs": {"text": text, "image": {"type": "image", "encoder": {"type": "conv"}}},
        "fusion": {"type": "concat"},
        "tasks": {"answer": task},
        "output": {"storage": "/runs"},
    }
    try:
        validate_spec(job, Job, "x.yaml")
    except SpecError as error:
        return str(error).removeprefix("x.yaml: ")
    return ""


HF = {"type": "huggingface", "model": "/somewhere"}


@pytest.mark.parametrize(
    ("task", "encoder", "problem"),
    [
        ({"type": "tagging", "input": "text"}, {**HF, "pool": "none"}, ""),
        ({"type": "tagging", "input": "text"}, HF, "tasks.answer.input: the encoder of `text` pools the text to one vector"),
        ({"type": "tagging", "input": "text"}, None, "tasks.answer.input: the encoder of `text` pools the text to one vector"),
        ({"type": "tagging", "input": "image"}, None, "tasks.answer.input: `image` is not a single text"),
        ({"type": "tagging", "input": "txt"}, None, "tasks.answer.input: no input `txt`; one of: text, image"),
        ({"type": "matching", "inputs": ["text", "image"]}, None, ""),
        ({"type": "matching", "inputs": ["text", "text"]}, None, "tasks.answer.inputs: `text` is listed twice"),
        ({"type": "matching", "inputs": ["text", "image"], "column": "text"}, None, "tasks: column `text` is both an input and a"),
        ({"type": "retrieval", "inputs": ["text", "sound"]}, None, "tasks.answer.inputs: no input `sound`"),
        ({"type": "retrieval", "inputs": ["text", "image"], "column": "image"}, None, ""),
        ({"type": "retrieval", "inputs": ["text", "image"], "projection": "none"}, None, ""),
        ({"type": "retrieval", "inputs": ["text", "image"], "projection": "none", "dim": 8}, None, "tasks.answer.dim: 8 is not align.dim 128, as `projection: none` requires"),
        ({"type": "retrieval", "inputs": ["text", "image"], "projection": "none", "loss": "cosine"}, None, "tasks.answer.loss: cosine collapses all rows to one vector if both inputs are trained; freeze one"),
        ({"type": "ranking", "query_column": "text"}, None, ""),
        ({"type": "ranking", "query_column": "answer"}, None, "tasks.answer.query_column: `answer` is also `column`, the relevance"),
        ({"type": "ranking"}, None, "tasks.answer.query_column: missing"),
        ({"type": "classification", "class_weights": "even"}, None, "tasks.answer.class_weights: 'even' is not one of: balanced"),
        ({"type": "classification", "class_weights": {"a": 0}}, None, "tasks.answer.class_weights.a: must be greater than 0, not 0"),
        ({"type": "classification", "label_smoothing": 1}, None, "tasks.answer.label_smoothing: must be less than 1, not 1"),
        ({"type": "soup"}, None, "tasks.answer: unknown type `soup`; "),
        ({"type": "my_package.tasks:MyHead", "options": {"a": 1}, "metrics": {"error": "min"}}, None, ""),
    ],
)  # fmt: skip
def test_errors_from_the_spec_alone(
    task: dict[str, Any], encoder: dict[str, Any] | None, problem: str
) -> None:
    found = problems(task, encoder)
    assert found.startswith(problem), found
    assert bool(found) == bool(problem)


def test_two_ranking_tasks_need_the_same_query_column() -> None:

    tasks = {"one": ranking(), "two": ranking().model_copy(update={"query_column": "other"})}
    [(path, reason)] = ranking().validate_in_job(SimpleNamespace(tasks=tasks))
    assert path == "query_column"
    assert "`query` differs from `other` of another task" in reason


@pytest.mark.parametrize(("value", "target"), [(1, 1.0), ([1, 2.5], [1, 2.5])])
def test_targets_of_custom_tasks(value: Any, target: Any) -> None:
    task = CustomTaskConfig(type="my:Head", column="x", metrics={"error": "min"})
    assert task.read({"x": value}, {}) == target
    assert task.metric_modes() == {"loss": "min", "error": "min"}
    for wrong in ("a", [1, "a"], [], None):
        with pytest.raises(InvalidInputError):
            task.target(wrong)


@pytest.mark.parametrize(
    ("task", "training_rows", "lines"),
    [
        (
            classification(["a", "b", "c"]),
            rows(["a", "b", "a", None, "x"]),
            [
                "answer: 2 classes in train; most common 'a' (66.7%), least 'b' (33.3%), ratio 2.0",
                "WARNING answer: no valid train row has class 'c'",
            ],
        ),
        (
            MatchingTaskConfig(type="matching", inputs=("a", "b"), column="label"),
            rows([True, 0, "true", None]),
            ["answer: 2 true and 1 false pairs in train"],
        ),
        (
            RegressionTaskConfig(type="regression", column="label", mean=1, std=2),
            rows([1, 2]),
            ["answer: mean 1, standard deviation 2 in train"],
        ),
        (
            RankingTaskConfig(type="ranking", column="label", query_column="label"),
            rows(["x", "y", "x"]),
            ["answer: 2 queries in train, with 1 to 2 rows each"],
        ),
        (
            TaggingTaskConfig(type="tagging", column="label", input="text", entities=["x"]),
            rows([["O", "B-x"], ["B-x", "I-x", 3], None]),
            ["answer: 4 words in train; entities: x 2"],
        ),
    ],
)
def test_summaries_of_training_rows(task: Any, training_rows: list[Row], lines: list[str]) -> None:
    summary = task.summary("answer")
    for row in training_rows:
        summary.update(row)
    assert list(summary.lines()) == lines


def test_tasks_without_a_column_have_no_summary() -> None:
    assert MatchingTaskConfig(type="matching", inputs=("a", "b")).summary("pair") is None


def test_summaries_of_many_classes_are_short() -> None:
    names = [f"class {i}" for i in range(1000)]
    entities = TaggingTaskConfig(type="tagging", column="label", input="text", entities=names)
    for task, row in ((classification(names), "class 3"), (entities, ["B-class 3"])):
        summary: Any = task.summary("answer")  # type: ignore[attr-defined]
        summary.update(rows([row])[0])
        lines = list(summary.lines())
        assert max(map(len, lines)) < 400
    assert "entities: class 3 1, class 0 0," in lines[0]
    assert lines[0].endswith("and 980 more types")


def test_rare_labels_are_no_classes() -> None:
    task = MultiLabelTaskConfig(type="multi_label", column="label", min_frequency=2).fit(
        rows([["a", "b"], ["a", "b", "c"], ["a"], []])
    )
    assert task.classes == ["a", "b"]
    assert task.target(["b", "c"]).positions == (1,)
    with pytest.raises(InvalidInputError, match="1.5"):
        task.target([1.5])
