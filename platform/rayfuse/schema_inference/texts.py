"""Kinds of columns of texts: numbers, dates, paths of files, ids, categories and texts."""

from collections.abc import Sequence

from rayfuse.schema_inference.column import (
    Column,
    canonical,
    names_entity,
    names_id,
    names_split,
    percentile,
    show_values,
)
from rayfuse.schema_inference.dates import are_iso, hold_dates
from rayfuse.schema_inference.files import infer_files
from rayfuse.schema_inference.media import kind_of_path
from rayfuse.schema_inference.numbers import infer_numbers, parse_numbers
from rayfuse.schema_inference.sample import Sample
from rayfuse.spec.cells import resembles_number

_MOSTLY = 0.95
_NEARLY_UNIQUE = 0.98
_MIN_ROWS_OF_ID = 20
_MAX_ID_CHARS = 64
_MAX_CATEGORIES = 2_000
_FEW_VALUES = 20
_WORDS_OF_TEXT = 4
"""Mean number of words from which texts are texts even if many of them repeat."""
_FEWEST_GROUPS = 10
_MAX_SENTENCES = 5
"""Distinct texts of several words up to which they are categories, such as answers of a survey."""
_REPEATS_OF_CATEGORY = 2
_MAX_SPLIT_VALUES = 20
_BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}, {"on", "off"})


def infer_texts(name: str, texts: Sequence[str], sample: Sample) -> Column:
    """Return the kind of a column of texts without blank ones."""
    numbers = parse_numbers(texts)
    if numbers is not None:
        return infer_numbers(name, numbers, sample)
    kinds = [kind_of_path(text) for text in texts[:200]]
    common = max(set(kinds), key=kinds.count)
    if common and kinds.count(common) >= _MOSTLY * len(kinds):
        return infer_files(name, common, texts, sample)
    if hold_dates(texts):
        note = f"dates such as {texts[0].strip()}; no input reads dates"
        return Column(name, "date", note, is_iso_time=are_iso(texts))
    return _infer_words(name, texts)


def _infer_words(name: str, texts: Sequence[str]) -> Column:
    values = [canonical(text) for text in texts]
    distinct, count = len(set(values)), len(values)
    if distinct == 2 and {value.lower() for value in values} in _BOOLEANS:
        return Column(name, "boolean", show_values(values), num_distinct=distinct)
    if names_split(name) and distinct <= _MAX_SPLIT_VALUES:
        return Column(name, "unusable", f"divides the rows into parts, by its name: {show_values(values)}")
    words = sum(len(value.split()) for value in values) / count
    if _are_ids(name, values, words, distinct):
        note = f"identifies one of {distinct:,}: {show_values(values)}"
        return Column(name, "id", note, num_distinct=distinct, is_group=distinct <= count / 2)
    length = percentile([len(value.encode("utf-8", "replace")) for value in values])
    most_words = percentile([len(value.split()) for value in values])
    if _are_categories(words, distinct, count):
        note = f"{distinct:,} values: {show_values(values)}{_number_note(values)}"
        group = names_entity(name) and distinct >= _FEWEST_GROUPS
        return Column(name, "category", note, num_distinct=distinct, length=length, is_group=group)
    note = (
        f"texts of {words:.0f} words on average" if words >= 1.5 else "single words, most of them different"
    )
    return Column(name, "text", note, num_distinct=distinct, length=length, words=most_words)


def _are_ids(name: str, values: Sequence[str], words: float, distinct: int) -> bool:
    if words > 1.05 or max(map(len, values)) > _MAX_ID_CHARS:
        return names_id(name) and words <= 1.05
    if names_id(name) and distinct > _FEW_VALUES:
        return True
    unique = distinct >= _NEARLY_UNIQUE * len(values) and len(values) >= _MIN_ROWS_OF_ID
    with_digits = sum(any(sign.isdigit() for sign in value) for value in values)
    return unique and with_digits >= _MOSTLY * len(values)


def _are_categories(words: float, distinct: int, count: int) -> bool:
    if distinct > _MAX_CATEGORIES:
        return False
    if words >= _WORDS_OF_TEXT:
        return distinct <= _MAX_SENTENCES and count >= 5 * distinct
    return count >= _REPEATS_OF_CATEGORY * distinct


def _number_note(values: Sequence[str]) -> str:
    """Return a warning for a column of categories that are numbers but for a few."""
    others = [value for value in values if not resembles_number(value)]
    if len(others) > len(values) / 2 or len(others) == len(values):
        return ""
    if not others:
        return "; WARNING: these are numbers with marks; set data.thousands or data.decimal"
    return f"; WARNING: numbers but for {show_values(others)}; add these to data.missing_values"
