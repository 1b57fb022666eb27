import pytest

from rayfuse.formatting import (
    escape_controls,
    first_line,
    format_bytes,
    metric_table,
    no_capacity,
    plural,
    printable,
    table,
    truncate,
    truncate_middle,
    truncated_repr,
)


def test_truncated_text_has_the_limit() -> None:
    assert truncate("abc", 3) == "abc"
    assert truncate("abcd", 3) == "ab…"
    assert truncated_repr(["a" * 100], 8) == "['aaaaa…"


def test_only_the_beginning_of_a_large_value_is_formatted() -> None:
    shared: list[object] = ["lol"]
    for _ in range(100):
        shared = [shared] * 9
    assert truncated_repr(shared).startswith("[[[[[...], ")
    assert truncated_repr({"b": 1, "a": [True, None]}) == "{'b': 1, 'a': [True, None]}"
    assert truncated_repr(10**5000) == "<an integer of 16610 bits>"


def test_printable_text_is_one_line() -> None:
    assert printable("a\x1b[2J\n\u202eb\ud800é") == r"a\x1b[2J\n\u202eb\ud800é"
    assert printable("\x1b" * 100, 10) == r"\x1b\x1b\…"


def test_control_characters_are_escaped_and_lines_kept() -> None:
    text = "a\tb\r\nc\x1b[2J\rd\x07\x9b\ud800\n"
    assert escape_controls(text) == "a\tb\r\nc\\x1b[2J\\rd\\x07\\x9b\\ud800\n"


def test_the_middle_of_a_long_text_is_cut() -> None:
    assert truncate_middle("customer is angry about invoice 17", 24) == "customer is ang…voice 17"
    assert truncate_middle("a short name", 24) == "a short name"
    assert len(truncate_middle("x" * 100, 24)) == 24


def test_plural() -> None:
    assert [plural(count, "CPU") for count in (0, 1, 2, 0.5)] == ["0 CPUs", "1 CPU", "2 CPUs", "0.5 CPUs"]
    assert no_capacity(1, 1, 0) == "1 worker with 1 CPU does not fit"
    assert no_capacity(2, 4, 1, "replica") == "2 replicas with 4 CPUs and 1 GPU each do not fit"


def test_first_line() -> None:
    assert first_line("\n  one\ntwo") == "one"
    assert first_line("") == ""
    assert len(first_line("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (55_800, "55.8 kB"), (24e6, "24 MB"), (1.5e9, "1.50 GB")]
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    text = table(["name", "rows", "note"], [["a", 5, None], ["longer", 1000, "x"]])
    assert text.splitlines() == [
        "name    rows  note",
        "a          5  -",
        "longer  1000  x",
    ]
    assert table(["name"], []) == "name"


def test_the_table_of_metrics_leaves_out_averages_over_classes() -> None:
    metrics = {"loss": 1.0, "a_task/accuracy": 0.5, "a_task/f1_macro": 0.25}
    by_inputs = {"image+text": metrics, "image": metrics, "text": {**metrics, "a_task/accuracy": 0.125}}
    text = metric_table(by_inputs)
    assert text.splitlines() == [
        "inputs      loss  a_task/accuracy",
        "image+text     1              0.5",
        "image          1              0.5",
        "text           1            0.125",
    ]


def test_a_metric_that_was_not_computed_is_a_dash() -> None:
    text = metric_table(
        {"a+b": {"loss": 1.0, "bleu": 20.5}, "a": {"loss": 2.0, "bleu": 3.5}, "b": {"loss": 3.0}}
    )
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["a+b", "1", "20.5"],
        ["a", "2", "3.5"],
        ["b", "3", "-"],
    ]


def test_the_table_of_metrics_says_if_subsets_are_left_out() -> None:
    names = ["a+b+c+d+e+f", "a", "b"]
    last = metric_table({name: {"loss": 1.0} for name in names}).splitlines()[-1]
    assert last.startswith("3 of the 63 subsets of 6 inputs")
