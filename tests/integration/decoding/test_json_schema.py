"""Replies that follow a JSON Schema within their tokens."""

import json

import jsonschema
import pytest
import random_language_models as tiny
import torch

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.json_schema import GrammarVocabulary
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.errors import InvalidInputError, SpecError

TOKENIZER = tiny.tokenizer()
ROOM = {"enum": ["kitchen", "hall", "bathroom"]}
COMMAND = {
    "type": "object",
    "properties": {
        "room": ROOM,
        "level": {"type": "integer", "minimum": 10},
        "note": {"type": "string", "minLength": 2},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    },
    "required": ["room", "level", "note", "tags"],
    "additionalProperties": False,
}
MANY = {
    "type": "object",
    "properties": {f"field_{index}": {"type": ["string", "number", "null"]} for index in range(20)},
    "required": [f"field_{index}" for index in range(20)],
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def vocabulary():
    return GrammarVocabulary(TOKENIZER, [tiny.END])


@pytest.fixture(scope="module")
def decoder():
    return Decoder(tiny.llama(), TOKENIZER, max_slots=4, max_length=90)


def forced(vocabulary, schema, preferred=-1):
    """Return the reply that the budget forces, whatever token of those allowed the model prefers."""
    constraint = vocabulary.json_schema(schema)
    tokens, budget = [], constraint.min_tokens
    while not constraint.finished and len(tokens) < budget:
        token = int(constraint.allowed(torch.zeros(tiny.VOCAB)).nonzero()[preferred])
        tokens.append(constraint.advance(token, budget - len(tokens) - 1))
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (COMMAND, '{"room": "hall", "level": 10, "note": "aa", "tags": ["", ""]}'),
        (TREE, '{"name": ""}'),
        ({"type": "object"}, "{}"),
        ({"type": "string", "pattern": "^[a-c]{3}-[0-9]{2}$"}, '"aaa-00"'),
        ({"anyOf": [{"const": "a long value"}, {"const": 7}]}, "7"),
        (MANY, json.dumps(dict.fromkeys(MANY["required"], 0))),
        ({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}, '{"on": true}'),
    ],
)
def test_a_budget_of_the_fewest_tokens_forces_a_shortest_reply(vocabulary, schema, wanted):
    assert vocabulary.json_schema(schema).min_tokens == len(vocabulary.split(wanted.encode()))
    jsonschema.validate(json.loads(forced(vocabulary, schema)), schema)
    jsonschema.validate(json.loads(forced(vocabulary, schema, preferred=0)), schema)


def test_a_beginning_of_the_plan_in_more_tokens_than_remain_is_replaced(vocabulary):
    schema = {"enum": ["hello", "wwwwwwwwwwww"]}
    assert vocabulary.json_schema(schema).min_tokens == 3
    assert forced(vocabulary, schema, preferred=0) == '"hello"'


def test_a_schema_of_many_formats_has_a_finish(vocabulary):
    formats = ["date-time", "email", "uuid", "ipv4"]
    properties = {name: {"type": "string", "format": name} for name in formats}
    schema = {"type": "object", "properties": properties, "required": formats}
    reply = json.loads(forced(vocabulary, schema))
    assert list(reply) == formats
    assert len(reply["uuid"]) == 36


@pytest.mark.parametrize("schema", [COMMAND, TREE, {"type": "array", "items": ROOM}, {}])
@pytest.mark.parametrize("extra", [0, 1, 20])
def test_sampled_replies_are_valid_and_never_cut_off(vocabulary, decoder, schema, extra):
    shortest_reply = vocabulary.json_schema(schema).min_tokens
    requests = [
        DecodeRequest(
            [5, 6, 7],
            SamplingParams(max_tokens=min(shortest_reply + extra, 87), temperature=2.0, seed=seed),
            constraint=vocabulary.json_schema(schema),
        )
        for seed in range(3)
    ]
    for done in decoder.generate(requests):
        assert done.finish_reason == "stop"
        jsonschema.validate(json.loads(done.text), schema)


def test_constrained_and_free_requests_share_a_batch(vocabulary, decoder):
    free = DecodeRequest([9, 8, 7], SamplingParams(max_tokens=20))
    bound = DecodeRequest([9, 8], SamplingParams(max_tokens=20), constraint=vocabulary.json_schema(ROOM))
    alone = decoder.generate([free])[0]
    done = decoder.generate([bound, free])
    assert json.loads(done[0].text) in ROOM["enum"]
    assert done[1].token_ids == alone.token_ids


def test_a_schema_that_cannot_be_finished_is_refused_before_decoding(vocabulary, decoder):
    needed = vocabulary.json_schema(COMMAND).min_tokens
    request = DecodeRequest(
        [5], SamplingParams(max_tokens=needed - 1), constraint=vocabulary.json_schema(COMMAND)
    )
    with pytest.raises(InvalidInputError, match=f"max_tokens: {needed - 1} tokens are too few.*has {needed}"):
        decoder.submit(request)
    assert not decoder.busy


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, "json_schema: the JSON schema cannot be used: Invalid type: text"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        (False, "must be an object"),
        ({"not": {}}, "cannot be used|no text"),
        ("text", "must be an object"),
    ],
)
def test_invalid_and_unsupported_schemas_are_refused(vocabulary, schema, message):
    with pytest.raises(InvalidInputError, match=message):
        vocabulary.json_schema(schema)


def test_a_model_without_end_token_is_refused():
    with pytest.raises(SpecError, match="no end token"):
        GrammarVocabulary(TOKENIZER, [])
