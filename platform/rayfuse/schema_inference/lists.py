"""Kinds of columns of lists: series of numbers, words, items of a history, and several files."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse.schema_inference.column import Column, canonical, normalized_name, percentile, show_values
from rayfuse.schema_inference.files import infer_embedded, infer_files
from rayfuse.schema_inference.media import kind_of_path
from rayfuse.schema_inference.numbers import is_number
from rayfuse.schema_inference.sample import Embedded, Sample
from rayfuse.schema_inference.series import SeriesLayout, layout_of_lists

_HISTORY_NAME = re.compile(
    r"(^|_)(history|items?|purchases?|purchased|products?|clicks|clicked|views|viewed|visited|events?|basket|cart|"
    r"orders?|movies|songs|tracks|played|bought|pages|skus?|codes|visits)(_ids?)?$"
)
_MOSTLY = 0.95
_ID_KEYS = ({"id"}, {"id", "time"})


def infer_lists(name: str, values: Sequence[Sequence[Any]], sample: Sample) -> Column:
    """Return the kind of a column of lists that are not empty."""
    items = [item for value in values for item in value if item is not None]
    longest = max(map(len, values))
    if not items:
        return Column(name, "unusable", "lists without values")
    if all(isinstance(item, Embedded) for item in items):
        return infer_embedded(name, items, sample, longest)
    if all(is_number(item) or isinstance(item, bool) for item in items):
        return _infer_numbers(name, values, items)
    if all(isinstance(item, str) for item in items):
        return _infer_words(name, values, items, sample)
    if all(isinstance(item, list) for item in items):
        return _infer_nested(name, values, items)
    if all(isinstance(item, Mapping) for item in items):
        return _infer_mappings(name, values, items)
    return Column(name, "unusable", "lists of values of several types")


def are_tags(values: Sequence[Any]) -> bool:
    """Return whether lists hold tags of the form O, B-TYPE and I-TYPE."""
    tags = [tag for value in values if isinstance(value, list) for tag in value]
    in_form = sum(isinstance(tag, str) and (tag == "O" or tag[:2] in ("B-", "I-")) for tag in tags)
    return bool(tags) and in_form >= _MOSTLY * len(tags)


def _infer_numbers(name: str, values: Sequence[Sequence[Any]], items: Sequence[Any]) -> Column:
    lengths = [len(value) for value in values]
    whole = all(float(item).is_integer() for item in items)
    history = _HISTORY_NAME.search(normalized_name(name)) is not None
    if whole and (history or (len(set(lengths)) > 1 and min(items) >= 0 and max(items) > 1)):
        return _items(
            name, values, items, "whole numbers" if history else "whole numbers, lists of any length"
        )
    note = (
        f"lists of {min(lengths)} to {max(lengths)} numbers"
        if len(set(lengths)) > 1
        else f"lists of {lengths[0]} numbers"
    )
    layout = SeriesLayout(1)
    return Column(name, "timeseries", note, length=percentile(lengths, 1.0), layout=layout)


def _infer_words(name: str, values: Sequence[Sequence[Any]], items: Sequence[str], sample: Sample) -> Column:
    kinds = {kind_of_path(item) for item in items[:200]}
    if len(kinds) == 1 and (kind := kinds.pop()) and kind != "timeseries":
        return infer_files(name, kind, items, sample, max(map(len, values)))
    if _HISTORY_NAME.search(normalized_name(name)):
        return _items(name, values, items, "texts")
    words = [" ".join(str(item) for item in value if item is not None) for value in values]
    length = percentile([len(text.encode("utf-8", "replace")) for text in words])
    mean = len(items) / len(values)
    distinct = len(set(map(canonical, values)))
    return Column(
        name, "text", f"lists of {mean:.0f} words on average", num_distinct=distinct, length=length,
        words=percentile([len(text.split()) for text in words]),
    )  # fmt: skip


def _items(name: str, values: Sequence[Sequence[Any]], items: Sequence[Any], what: str) -> Column:
    lengths = [len(value) for value in values]
    distinct = len(set(map(canonical, items)))
    note = f"sequences of {min(lengths)} to {max(lengths)} items ({what}), {distinct:,} different: {show_values(items)}"
    return Column(name, "item_sequence", note, num_distinct=distinct, length=percentile(lengths))


def _infer_nested(name: str, values: Sequence[Any], items: Sequence[Sequence[Any]]) -> Column:
    flat = [number for item in items[:10_000] for number in item]
    if not flat or not all(number is None or is_number(number) for number in flat):
        return Column(name, "unusable", "lists of lists, which are not numbers")
    layout = layout_of_lists([value for value in values if all(value)])
    shape = f"{len(values[0])} × {len(values[0][0])}"
    order = "steps × channels" if layout.steps_first else "channels × steps"
    outer, inner = (max(map(len, values)), max(map(len, items)))
    return Column(
        name, "timeseries", f"lists of lists of numbers, {shape}, taken as {order}",
        length=outer if layout.steps_first else inner, layout=layout,
    )  # fmt: skip


def _infer_mappings(name: str, values: Sequence[Any], items: Sequence[Mapping[str, Any]]) -> Column:
    keys = {frozenset(item) for item in items}
    if all(set(found) in _ID_KEYS for found in keys):
        return _items(
            name,
            values,
            [item["id"] for item in items],
            "ids with times" if {"id", "time"} in map(set, keys) else "ids",
        )
    if all({"role", "content"} <= found or {"from", "value"} <= found for found in keys):
        note = "dialogues, lists of messages: write an input of type chat, and a generation task with a language model"
        return Column(name, "unusable", note)
    return Column(
        name,
        "unusable",
        f"lists of mappings with {show_values([key for item in items[:100] for key in item])}",
    )
