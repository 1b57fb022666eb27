"""Texts that follow a JSON Schema."""

import json
from typing import Any

import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.json_grammar import JsonTexts, schema_grammar

COMMAND = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["on", "off"]},
        "slots": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "level": {"type": "number"}},
            "additionalProperties": False,
        },
    },
    "required": ["intent", "slots"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "value",
    [
        {"intent": "on", "slots": {}},
        {"intent": "off", "slots": {"name": 'Café "1"\n', "level": -2.5}},
        {"intent": "off", "slots": {"level": 100}},
    ],
)
def test_texts_of_valid_values_are_written_alike(value: dict[str, Any]) -> None:
    texts = JsonTexts(COMMAND)
    wanted = json.dumps(value, ensure_ascii=False)
    for text in (
        wanted,
        json.dumps(value),
        json.dumps(value, indent=2),
        json.dumps(value, separators=(",", ":")),
    ):
        assert texts.normalize(text) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("on", "is not JSON: Expecting value"),
        ("[" * 100_000, "is not JSON"),
        ('{"intent": "of', "is not JSON"),
        (
            '{"intent": "dim", "slots": {}}',
            r"""'dim", "slots": \{\}\}' behind '\{"intent": "' is not allowed""",
        ),
        ('{"slots": {}, "intent": "on"}', r"behind '\{\"' is not allowed; .*in the order of the keys"),
        ('{"intent": "on", "slots": {"level": 1, "name": "a"}}', "is not allowed"),
        ('{"intent": "on", "slots": {"colour": "red"}}', "is not allowed"),
        ('{"intent": "on", "slots": {"level": "high"}}', "is not allowed"),
        ('{"intent": "on"}', "is not allowed"),
        ('"on"', "is not allowed"),
    ],
)
def test_other_texts_are_invalid(text: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        JsonTexts(COMMAND).normalize(text)


def test_one_text_does_not_change_the_next() -> None:
    texts = JsonTexts(COMMAND)
    for _ in range(2):
        assert texts.normalize('{"intent":"on","slots":{}}') == '{"intent": "on", "slots": {}}'
        with pytest.raises(InvalidInputError):
            texts.normalize('{"intent": "dim"}')


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], r"must be an object, not \[\]"),
        ({"type": "text"}, "Invalid type: text"),
        ({"properties": {"a": 3}}, "must be an object or boolean"),
        ({"required": "a"}, "Expected array for 'required'"),
        ({"$ref": "#/nope"}, "'/nope' does not exist"),
    ],
)
def test_what_is_no_schema_is_rejected(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=f"json_schema: the JSON schema .*{reason}"):
        schema_grammar(schema)
