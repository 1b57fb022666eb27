"""Strict YAML for specs: the core schema of YAML 1.2 with merge keys, unique keys that are texts, and limits.

Nodes are built from parser events, so that the limits apply while a text is parsed: deep nesting and aliases that
multiply (Billion Laughs) cost no more than the limits.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, Final, cast

import yaml

from rayfuse.formatting import CONTROL_CHARACTER, printable, truncated_repr

MAX_DEPTH: Final = 50
"""Largest number of nested mappings and lists."""
MAX_NODES: Final = 50_000
"""Largest number of keys and values, where each alias counts as what it stands for."""

_TAG_PREFIX = "tag:yaml.org,2002:"
_MERGE_KEY = "<<"
_MAX_INTEGER_LENGTH = 21
"""Characters of an integer of 64 bits, with its sign."""
_INTEGERS = range(-(2**63), 2**64)
_NAN_OR_INFINITY = re.compile(r"([-+]?)\.([a-zA-Z]+)")
_CORE_SCHEMA = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
"""Plain scalars by type (YAML 1.2.2, section 10.3.2); all others are texts."""
_CONTROL_OR_SURROGATE = re.compile(rf"{CONTROL_CHARACTER.pattern}|[\ud800-\udfff]")
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else."""


for _kind, _form in _CORE_SCHEMA.items():
    _Dumper.add_implicit_resolver(
        _TAG_PREFIX + _kind, re.compile(f"(?:{_form.pattern})$"), [*"-+.~0123456789nNtTfF", ""]
    )


class YamlError(ValueError):
    """Invalid YAML; the message names the problem and the remedy."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line
        """Line of the problem, from 1; None if it has none."""


def load_yaml(text: str) -> Any:
    """Parse a YAML document; an empty one is None. Raises YamlError."""
    if found := _CONTROL_OR_SURROGATE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise YamlError(f"the character {printable(found[0])} is not allowed; remove it", line)
    try:
        return _Builder(text).document()
    except yaml.MarkedYAMLError as error:
        raise _describe(error, text) from None
    except yaml.YAMLError as error:
        raise YamlError(f"{printable(str(error), 100)}; save the file as plain UTF-8 text") from None


def check_values(value: Any, depth: int = 0) -> None:
    """Check a Python value as `load_yaml` checks those of a file. Raises YamlError; other objects are not checked."""
    if depth > MAX_DEPTH:
        raise YamlError(f"nested more than {MAX_DEPTH} levels deep; write a flatter structure")
    if isinstance(value, str) and (found := _CONTROL_OR_SURROGATE.search(value)):
        raise YamlError(f"the character {printable(found[0])} is not allowed; remove it")
    if isinstance(value, int) and value not in _INTEGERS:
        raise YamlError("an integer has more than 64 bits; pass a text if it is a name")
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise YamlError(f"a key must be text, not {truncated_repr(key)}")
        check_values(key)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for each in inner:
        check_values(each, depth + 1)


def dump_yaml(content: Any, width: int = 100) -> str:
    """Return `content` as YAML that `load_yaml` reads back, with its keys in order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)
    return text


def _describe(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    problem = printable(error.problem or "not YAML", 100)
    if error.problem_mark is None:
        return YamlError(problem)
    number = error.problem_mark.line
    line = "".join(text.split("\n")[number : number + 1])
    if "\t" in line[: len(line) - len(line.lstrip())]:
        remedy = "indent with spaces"
    elif "${" in line:  # inside braces an unquoted ${VAR} ends the mapping
        remedy = 'put "${…}" in quotes'
    else:
        remedy = "check indentation, quotes, brackets and colons"
    return YamlError(f"{problem}; {remedy}", number + 1)


class _Builder:
    """Builds the nodes of a document from its events."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_PARSER)
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._open_anchors: set[str] = set()
        self._num_nodes = 0

    def document(self) -> Any:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        content = self._node(next(self._events), depth=0)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise _error("a second document begins; write each spec into a separate file", event)
        return content

    def _node(self, event: yaml.Event, depth: int) -> Any:
        self._count(1, event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        anchor, first = cast(yaml.NodeEvent, event).anchor, self._num_nodes
        if anchor is not None:
            self._open_anchors.add(anchor)
        value = self._value(event, depth)
        if anchor is not None:
            self._open_anchors.discard(anchor)
            self._anchors[anchor] = value, self._num_nodes - first
        return value

    def _value(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        _check_depth(depth + 1, event)
        _check_tag(event, "seq" if isinstance(event, yaml.SequenceStartEvent) else "map")
        return self._sequence(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)

    def _alias(self, event: yaml.AliasEvent, depth: int) -> Any:
        anchor = str(event.anchor)
        name = printable(anchor, 40)
        if anchor in self._open_anchors:
            raise _error(f"`*{name}` is inside its own anchor; write the values out", event)
        if anchor not in self._anchors:
            raise _error(f"`*{name}` has no anchor above it; add &{name} to the value that it repeats", event)
        value, size = self._anchors[anchor]
        self._count(size, event)
        _check_depth(depth + _height(value), event)
        return copy.deepcopy(value)  # an override of one place changes no other

    def _sequence(self, depth: int) -> list[Any]:
        values = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._node(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth)
            is_merge = key == _MERGE_KEY and isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            if key in values or (is_merge and merged):
                raise _error(
                    f"key `{printable(key, 60)}` is given twice; keep one, or rename the other", event
                )
            value = self._node(next(self._events), depth + 1)
            if is_merge:
                merged = _merge(value, event)
            else:
                values[key] = value
        return {**merged, **values}

    def _key(self, event: yaml.Event, depth: int) -> str:
        key = self._node(event, depth + 1)
        if not isinstance(key, str):
            written = printable(event.value, 40) if isinstance(event, yaml.ScalarEvent) else ""
            raise _error(f"a key must be text; put {f'`{written}`' if written else 'it'} in quotes", event)
        return key

    def _count(self, number: int, event: yaml.Event) -> None:
        self._num_nodes += number
        if self._num_nodes > MAX_NODES:
            raise _error(
                f"more than {MAX_NODES:,} keys and values, with those of aliases; write fewer", event
            )


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if found := _CONTROL_OR_SURROGATE.search(text):
        raise _error(f"the character {printable(found[0])} is not allowed; remove it", event)
    if event.implicit[0] and event.tag is None:  # plain
        return _convert(next((n for n, form in _CORE_SCHEMA.items() if form.fullmatch(text)), "str"), event)
    if event.tag is None or event.tag == "!":
        return text
    _check_tag(event, *_CORE_SCHEMA, "str")
    kind = str(event.tag).removeprefix(_TAG_PREFIX)
    forms = [form for name, form in _CORE_SCHEMA.items() if name == kind or (kind, name) == ("float", "int")]
    if forms and not any(form.fullmatch(text) for form in forms):
        raise _error(f"`{printable(text, 60)}` is not of the type !!{kind}; remove the tag", event)
    return _convert(kind, event)


def _convert(kind: str, event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if kind == "int":
        return _integer(text, event)
    if kind == "float":
        return float(_NAN_OR_INFINITY.sub(r"\1\2", text))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


def _integer(text: str, event: yaml.ScalarEvent) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = int(text, base) if len(text) <= _MAX_INTEGER_LENGTH or base != 10 else None
    if number is None or number not in _INTEGERS:
        raise _error(f"{printable(text, 30)} has more than 64 bits; put it in quotes if it is a name", event)
    return number


def _check_tag(event: Any, *known: str) -> None:
    if event.tag not in (None, "!", *(_TAG_PREFIX + kind for kind in known)):
        tag = printable(event.tag.replace(_TAG_PREFIX, "!!"), 60)
        raise _error(f"the tag `{tag}` is not supported here; remove it", event)


def _merge(value: Any, event: yaml.Event) -> dict[str, Any]:
    mappings = value if isinstance(value, list) else [value]
    if not all(isinstance(mapping, dict) for mapping in mappings):
        raise _error("`<<` merges mappings; write it as in `<<: *base`", event)
    return {key: inner for mapping in reversed(mappings) for key, inner in mapping.items()}


def _height(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_height, value.values() if isinstance(value, dict) else value), default=0)


def _check_depth(depth: int, event: yaml.Event) -> None:
    if depth > MAX_DEPTH:
        raise _error(f"nested more than {MAX_DEPTH} levels deep; write a flatter structure", event)


def _error(problem: str, event: yaml.Event) -> YamlError:
    return YamlError(problem, event.start_mark.line + 1 if event.start_mark else None)
