"""YAML with comments."""

import yaml

from rayfuse.schema_inference.commented_yaml import render

CONTENT = {
    "kind": "job",
    "data": {"train": "a b.csv", "validation": {"fraction": 0.1}},
    "inputs": {
        "texts": {"type": "text", "template": "title: {title}\n{body}"},
        "yes": {"columns": {"on": "number"}},
    },
    "tasks": {"stars": {"type": "ordinal", "classes": ["no", "1", 2, True]}},
}


def test_it_is_the_same_yaml() -> None:
    text = render(
        CONTENT, {("data", "train"): "3 rows", ("tasks", "stars"): "a # b\nc"}, {("data",): ["left: out"]}
    )
    assert yaml.safe_load(text) == CONTENT


def test_comments_are_on_the_line_of_their_key() -> None:
    lines = render(
        CONTENT, {("data", "train"): "3 rows"}, {("data",): ["group: id"], (): ["end"]}
    ).splitlines()
    assert lines[2].split("  # ") == ["  train: a b.csv" + 24 * " ", "3 rows"]
    assert lines[3] == "  validation: {fraction: 0.1}"
    assert lines[4] == "  # group: id"
    assert lines[-1] == "# end"


def test_a_block_with_comments_inside_has_a_line_per_key() -> None:
    comments = {("inputs", "yes", "columns", "on"): "1 to 3"}
    assert "    columns:\n      'on': number" in render(CONTENT, comments)
    assert "'yes': {columns: {'on': number}}" in render(CONTENT, {})
