"""Kinds of columns, inferred from a sample of their values."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse.formatting import plural
from rayfuse.schema_inference.column import Column, SeriesLayout, canonical, is_blank, show_values
from rayfuse.schema_inference.files import infer_embedded
from rayfuse.schema_inference.lists import infer_lists
from rayfuse.schema_inference.numbers import infer_numbers, is_number
from rayfuse.schema_inference.relations import find_text_of_ids
from rayfuse.schema_inference.sample import Embedded, Sample
from rayfuse.schema_inference.texts import infer_texts

_NEARLY_EMPTY = 0.05
_MAX_KEYS = 200
_RARE_KEY = 5


def infer_column(name: str, sample: Sample, values: Sequence[Any] | None = None) -> Column:
    """Return the kind of a column; `values`: its values, by default those of the sample."""
    values = sample.columns[name] if values is None else values
    present = [value for value in values if not is_blank(value)]
    missing = 1 - len(present) / max(len(values), 1)
    if not present:
        return Column(name, "unusable", "has no values", missing)
    if len(present) < _NEARLY_EMPTY * len(values):
        return Column(name, "unusable", f"nearly empty: {missing:.1%} of the rows lack it", missing)
    found = _infer(name, present, sample)
    if found.kind == "number" and (text := find_text_of_ids(name, sample)):
        found = dataclasses.replace(
            found, kind="id", note=f"ids, each of one value of `{text}`", is_group=True
        )
    if found.is_input and len({canonical(value) for value in present}) == 1 and len(values) > 1:
        found = _constant(name, present, missing)
    return dataclasses.replace(found, missing=missing)


def _constant(name: str, values: Sequence[Any], missing: float) -> Column:
    if missing >= _NEARLY_EMPTY and isinstance(values[0], (str, int, float)):
        return Column(name, "category", f"{show_values(values)}, or missing", num_distinct=1)
    return Column(name, "unusable", f"constant: always {show_values(values)}")


def _infer(name: str, values: Sequence[Any], sample: Sample) -> Column:
    if all(isinstance(value, Embedded) for value in values):
        return infer_embedded(name, values, sample)
    if all(isinstance(value, bool) for value in values):
        return Column(name, "boolean", show_values(values), num_distinct=len(set(values)))
    if all(is_number(value) for value in values):
        return infer_numbers(name, values, sample)
    if all(isinstance(value, str) for value in values):
        return infer_texts(name, values, sample)
    if all(isinstance(value, (datetime.date, datetime.datetime)) for value in values):
        note = f"dates such as {values[0]}; no input reads dates"
        return Column(name, "date", note, is_iso_time=True)
    if all(isinstance(value, list) for value in values):
        return infer_lists(name, values, sample)
    if all(isinstance(value, Mapping) for value in values):
        return _infer_mappings(name, values, sample)
    return _infer_mixed(name, values)


def _infer_mixed(name: str, values: Sequence[Any]) -> Column:
    types = sorted({type(value).__name__ for value in values})
    distinct = len({canonical(value) for value in values})
    if all(isinstance(value, (str, int, float)) for value in values) and 2 * distinct <= len(values):
        note = f"{distinct:,} values of the types {', '.join(types)}: {show_values(values)}"
        return Column(name, "category", note, num_distinct=distinct)
    return Column(name, "unusable", f"values of the types {', '.join(types)}")


def _infer_mappings(name: str, values: Sequence[Mapping[str, Any]], sample: Sample) -> Column:
    keys = list(dict.fromkeys(key for value in values for key in value))
    if len(keys) > _MAX_KEYS:
        return Column(name, "unusable", f"mappings with more than {_MAX_KEYS} keys")
    by_key: dict[str, list[Any]] = {key: [value.get(key) for value in values] for key in keys}
    if all(isinstance(item, list) for items in by_key.values() for item in items):
        steps = max(len(item) for items in by_key.values() for item in items)
        note = f"mappings with a list of numbers for each of {plural(len(keys), 'channel')}"
        return Column(name, "timeseries", note, layout=SeriesLayout(keys), length=steps)
    columns = {key: _infer_key(key, items, sample) for key, items in by_key.items()}
    unusable = [column for column in columns.values() if column.kind not in ("number", "category", "boolean")]
    if unusable:
        return Column(name, "unusable", f"mappings, and `{unusable[0].name}` in them: {unusable[0].note}")
    return Column(name, "tabular", f"mappings with {plural(len(keys), 'key')}", columns=columns)


def _infer_key(key: str, items: Sequence[Any], sample: Sample) -> Column:
    """Return the kind of a key of mappings, all of which the input must list: ids and texts are categories, too."""
    present = [item for item in items if item is not None]
    if len(present) < _RARE_KEY:
        return Column(
            key, "unusable", f"in {plural(len(present), 'row')} only, which may be none of the training rows"
        )
    found = _infer(key, present, sample)
    if isinstance(present[0], (list, Mapping)):
        return dataclasses.replace(found, kind="unusable")
    is_text = any(isinstance(item, str) for item in present)  # a number in a mapping has no characters
    if found.kind in ("id", "text", "date") or (found.kind == "number" and is_text):
        return dataclasses.replace(found, kind="category")
    return found
