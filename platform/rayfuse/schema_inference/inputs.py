"""Inputs of a job, from the kinds of its columns."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayfuse.formatting import plural
from rayfuse.schema_inference.column import Column, is_blank, normalized_name
from rayfuse.schema_inference.sample import Sample

Comments = dict[tuple[str, ...], str]
"""Path of a node → its comment."""

_TABULAR = ("number", "category", "boolean")
_TABLE = "table"
_MAX_TEXT_INPUTS = 5
"""Text columns above which they become one input with a template."""
_MAX_SIDE = 128
_MAX_VIDEO_SIDE = 112
_MAX_SAMPLE_RATE = 16_000
_MIN_SAMPLE_RATE = 1_000
_MAX_SECONDS = 30
_SECONDS_TOLERANCE = 0.05
_MAX_STEPS = 4096
_MAX_ITEMS = 512
_MAX_KEY_CHARS = 60
_TEMPLATE_SIGNS = "{}:!"


@dataclass
class Inputs:
    """Inputs of a job as in YAML, and comments on them."""

    content: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Inputs by name."""
    comments: Comments = field(default_factory=dict)
    """Comments by the path below `inputs`."""
    name_of: dict[str, str] = field(default_factory=dict)
    """Column → name of the input that reads it."""
    for_preset: bool = False
    """True if a preset chooses encoders and sizes."""


def choose_encoder(kind: str, column: Column, by_token: bool = False) -> dict[str, Any]:
    """Return the encoder of an input as in YAML, and sizes that depend on it. This is the only place that chooses one.

    Texts are short sums of n-grams, which need no download; other types have the default of the spec.

    kind: type of the input. by_token: True if a task needs a vector per word.
    """
    if kind != "text":
        return {}
    num_bytes = {"max_tokens": _power_of_two(column.length + 1, 32, 1024)}
    if by_token:
        return {**num_bytes, "encoder": {"type": "gru", "pool": "none"}}
    if column.words <= 1:  # parts of words count, which bytes have
        return num_bytes
    return {"max_tokens": _power_of_two(column.words + 1, 32, 2048), "encoder": {"type": "ngrams"}}


def build_inputs(
    columns: Sequence[Column],
    sample: Sample,
    reserved: Iterable[str] = (),
    tagged: Collection[str] = (),
    for_preset: bool = False,
) -> Inputs:
    """Return the inputs of the columns: numbers and categories in one, each text and file column in its own.

    reserved: names that inputs cannot have. tagged: columns of words that a task tags. for_preset: leave out encoders and
    sizes, which a preset chooses, except those that a task requires.
    """
    inputs = Inputs(for_preset=for_preset)
    names = _Names(reserved)
    _add_table([column for column in columns if column.kind in _TABULAR], sample, inputs, names)
    texts = [column for column in columns if column.kind == "text" and column.name not in tagged]
    if len(texts) > _MAX_TEXT_INPUTS:
        texts = _add_template(texts, sample, inputs, names)
    alone = {*(column.name for column in texts), *tagged}
    for column in columns:
        if column.kind not in (*_TABULAR, "text") or column.name in alone:
            _add(column, column.name in tagged, inputs, names)
    return inputs


class _Names:
    """Names of inputs, each given once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def choose(self, column: str) -> str:
        """Return a name for a column that is valid in a spec and not taken."""
        base = (
            normalized_name(column)[:_MAX_KEY_CHARS].encode("ascii", "ignore").decode().strip("_") or "input"
        )
        base = (
            column if column.isidentifier() and column.isascii() and len(column) <= _MAX_KEY_CHARS else base
        )
        base = f"_{base}" if base[0].isdigit() else base
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def _add_table(columns: Sequence[Column], sample: Sample, inputs: Inputs, names: _Names) -> None:
    if not columns:
        return
    name = names.choose(_TABLE if all(column.name != _TABLE for column in columns) else "columns")
    inputs.content[name] = {"type": "tabular", "columns": {column.name: _kind(column) for column in columns}}
    for column in columns:
        inputs.comments[name, "columns", column.name] = describe(column)
        inputs.name_of[column.name] = name
    lacking = _share_without(columns, sample)
    if lacking:
        inputs.content[name]["optional"] = True
        inputs.comments[name, "optional"] = f"{lacking:.1%} of the rows have none of these columns"


def _kind(column: Column) -> str:
    return "number" if column.kind == "number" else "category"


def _share_without(columns: Sequence[Column], sample: Sample) -> float:
    rows = zip(*(sample.columns[column.name] for column in columns), strict=True)
    return sum(all(map(is_blank, row)) for row in rows) / sample.size


def _add_template(columns: Sequence[Column], sample: Sample, inputs: Inputs, names: _Names) -> list[Column]:
    """Add one input of the texts of many columns, a line each; return the columns that it does not read."""
    fitting = [column for column in columns if not any(sign in column.name for sign in _TEMPLATE_SIGNS)]
    name = names.choose("texts")
    template = "\n".join(f"{column.name}: {{{column.name}}}" for column in fitting)
    total = sum(column.length + len(column.name) + 3 for column in fitting)
    words = sum(column.words + len(column.name.split()) for column in fitting)
    note = f"texts of {plural(len(fitting), 'column')}"
    joined = Column("texts", "text", note, length=total, words=words)
    inputs.content[name] = {**_block(joined, False, inputs.for_preset), "template": template}
    inputs.comments[name,] = f"{joined.note}: " + ", ".join(column.name for column in fitting)
    lacking = _share_without(fitting, sample)
    if lacking:
        inputs.content[name]["optional"] = True
        inputs.comments[name, "optional"] = f"{lacking:.1%} of the rows have none of them"
    inputs.name_of |= dict.fromkeys([column.name for column in fitting], name)
    return [column for column in columns if column not in fitting]


def _add(column: Column, by_token: bool, inputs: Inputs, names: _Names) -> None:
    name = names.choose(column.name)
    block = _block(column, by_token, inputs.for_preset)
    if name != column.name or column.kind == "tabular":
        block = {"type": block.pop("type"), "column": column.name, **block}
    if column.missing:
        block["optional"] = True
    inputs.content[name] = block
    inputs.name_of[column.name] = name
    inputs.comments[name,] = describe(column)
    if column.kind == "tabular":
        for key, inner in column.columns.items():
            inputs.comments[name, "columns", key] = describe(inner)
    if column.media.has_audio:
        _add_sound(column, name, inputs, names)


def _add_sound(column: Column, video: str, inputs: Inputs, names: _Names) -> None:
    """Add the audio of a video as a separate input."""
    name = names.choose(f"{video}_audio")
    inputs.content[name] = {"type": "audio", "audio_of": video}
    if not inputs.for_preset:
        inputs.content[name] |= _audio_options(column)
    if column.missing:
        inputs.content[name]["optional"] = True
    inputs.comments[name,] = f"the sound of `{video}`"


def describe(column: Column) -> str:
    """Return the reason of a column's kind, with its share of missing values."""
    return f"{column.note}; {column.missing:.1%} missing" if column.missing else column.note


def _block(column: Column, by_token: bool, for_preset: bool) -> dict[str, Any]:
    """Return an input as in YAML, without `column` and `optional`."""
    options = _OPTIONS[column.kind](column) if column.kind in _OPTIONS else {}
    if column.max_items > 1:
        options["max_items"] = column.max_items
    if not for_preset:
        sizes = _SIZES[column.kind](column) if column.kind in _SIZES else {}
        options = {**sizes, **options, **choose_encoder(column.kind, column, by_token)}
    elif by_token:
        options["encoder"] = choose_encoder(column.kind, column, by_token)["encoder"]
    return {"type": column.kind, **options}


def _image_options(column: Column) -> dict[str, Any]:
    return {"size": min(max(column.media.side or _MAX_SIDE, 8), _MAX_SIDE)}


def _video_options(column: Column) -> dict[str, Any]:
    return {"size": min(max(column.media.side or _MAX_VIDEO_SIDE, 8), _MAX_VIDEO_SIDE)}


def _audio_options(column: Column) -> dict[str, Any]:
    rate = min(max(column.media.sample_rate or _MAX_SAMPLE_RATE, _MIN_SAMPLE_RATE), _MAX_SAMPLE_RATE)
    seconds = min(math.ceil((column.media.seconds or 10) - _SECONDS_TOLERANCE), _MAX_SECONDS)
    return {"sample_rate": rate, "max_seconds": max(seconds, 1)}


def _timeseries_options(column: Column) -> dict[str, Any]:
    layout = column.layout
    assert layout is not None  # that of every time series
    options: dict[str, Any] = {"channels": layout.channels}
    if layout.steps_first:
        options["layout"] = "channels_last"
    return options | {"max_steps": min(max(column.length, 1), _MAX_STEPS)}


def _item_options(column: Column) -> dict[str, Any]:
    return {"max_length": _power_of_two(column.length, 4, _MAX_ITEMS)}


def _mapping_options(column: Column) -> dict[str, Any]:
    return {"columns": {key: _kind(inner) for key, inner in column.columns.items()}, "min_frequency": 1}


_SIZES = {"image": _image_options, "audio": _audio_options, "video": _video_options}
"""Options that presets choose, by type of input."""
_OPTIONS = {
    "timeseries": _timeseries_options,
    "item_sequence": _item_options,
    "tabular": _mapping_options,
}
"""Options that the data requires, by type of input."""


def _power_of_two(length: int, low: int, high: int) -> int:
    return min(max(1 << max(length - 1, 0).bit_length(), low), high)
