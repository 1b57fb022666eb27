"""Grammars of JSON Schemas, over bytes, with the library llguidance: which texts follow a schema."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from rayfuse.errors import InvalidInputError

PARAMETER = "json_schema"
"""Name of the field or parameter with a schema, in errors about it."""

_SHOWN = 40


def schema_grammar(schema: Any, separators: tuple[str, str] = (", ", ": ")) -> str:
    """Return the grammar of the texts that follow a JSON Schema, without white space but for the separators.

    `separators`: those of items and keys, by default as `json.dumps` writes them. Raises InvalidInputError for an invalid
    or unsupported schema.
    """
    if not isinstance(schema, Mapping):
        raise InvalidInputError(
            f"the JSON schema is invalid: it must be an object, not {schema!r}", PARAMETER
        )
    items, keys = separators
    options: Any = {"whitespace_flexible": False, "item_separator": items, "key_separator": keys}
    try:
        # Options within the schema would override the separators.
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"the JSON schema is invalid: {error}", PARAMETER) from error
    invalid, messages = LLMatcher.validate_grammar_with_warnings(grammar, byte_tokens())
    if invalid:
        raise InvalidInputError(f"the JSON schema cannot be used: {messages[0]}", PARAMETER)
    return grammar


def byte_matcher(grammar: str) -> Any:
    """Return a matcher of llguidance whose tokens are bytes."""
    return LLMatcher(byte_tokens(), grammar, log_level=0)


@cache
def byte_tokens() -> Any:
    """Return a tokenizer of llguidance with one token per byte."""
    return LLTokenizer(TokenizerWrapper(_Bytes()))


class JsonTexts:
    """The texts that follow a JSON Schema. Raises InvalidInputError for an invalid or unsupported schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._matcher = byte_matcher(schema_grammar(schema))

    def normalize(self, text: str) -> str:
        """Return a text with the separators of the grammar. Raises InvalidInputError if it does not follow the schema."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"the reply is not JSON: {error}; correct it") from None
        written = json.dumps(value, ensure_ascii=False)
        content = list(written.encode(errors="replace"))
        valid = self._matcher.validate_tokens(content)
        following = self._matcher.deep_copy()
        if valid == len(content) and following.consume_tokens(content) and following.is_accepting():
            return written
        before = bytes(content[:valid]).decode(errors="ignore")
        behind = written[len(before) :]
        found = f"{behind[:_SHOWN]!r} behind {before[-_SHOWN:]!r}" if behind else "its end"
        raise InvalidInputError(
            f"the reply does not follow json_schema: {found} is not allowed; correct the reply or the schema, whose "
            "properties are in the order of the keys"
        )


class _Bytes:
    """A tokenizer with one token per byte."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
