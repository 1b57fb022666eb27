"""Texts from several columns."""

from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.templates import fill_template, template_columns


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{title}\n{body}", {"title": "A", "body": "b {x}"}, "A\nb {x}"),
        ("{title}\n{body}", {"title": None, "body": "b"}, "b"),
        ("{title}\n{body}", {"title": "A"}, "A"),
        ("{title}\n{body}", {"title": float("nan"), "other": 1}, None),
        ("{title}\n{body}", {"title": "", "body": None}, ""),
        ("Title: {title}\nPrice: {price} of {total} {{EUR}}\nEnd", {"price": 3.0}, "Price: 3 of  {EUR}\nEnd"),
        ("{a.b}, {c d}", {"a.b": 1.5, "c d": ["x", "y"]}, "1.5, x y"),
    ],
)
def test_fill_template(template: str, values: dict[str, Any], text: str | None) -> None:
    assert fill_template(template, values) == text


def test_template_columns() -> None:
    assert template_columns("{b}: {a} {b} {{no}}") == ["b", "a"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"template": "no column"}, "is not a template with columns; write one as in {title}: {body}"),
        ({"template": "{} {a}"}, "is not a template with columns; write one as in {title}: {body}"),
        (
            {"template": "{a"},
            "inputs.text.template: expected '}' before end of string; write {{ and }} for braces",
        ),
        ({"template": "{a:.2f}"}, "inputs.text.template: a column has a format; write its name alone"),
        (
            {"template": "{a}", "max_items": 3},
            "inputs.text.max_items: 3 is not 1, and `template` builds one text",
        ),
    ],
)
def test_invalid_templates(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        Job(
            name="reviews",
            data={"train": "/rows.csv"},
            inputs={"text": {"type": "text", **options}},
            tasks={"stars": {"type": "classification"}},
        )
    assert problem in str(raised.value)
