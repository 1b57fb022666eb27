"""Kinds of columns of files: paths, `data:` URIs and files inside rows."""

from collections.abc import Sequence
from typing import Any

from rayfuse.formatting import truncate
from rayfuse.schema_inference.column import Column, Kind
from rayfuse.schema_inference.media import kind_of_value, probe, read_first
from rayfuse.schema_inference.sample import Embedded, Sample
from rayfuse.schema_inference.series import layout_of_files

_MOSTLY = 0.95
_MAX_ITEMS = 256


def infer_files(name: str, kind: str, values: Sequence[Any], sample: Sample, max_items: int = 1) -> Column:
    """Return the kind of a column of files of a kind: image, audio, video, text or timeseries."""
    if kind == "text":
        return Column(name, "unusable", "names text files, which no input reads; put the texts into the rows")
    if kind == "timeseries":
        return _infer_series(name, values, sample)
    facts = probe(kind, values, sample.folder)
    if facts.error:
        return Column(name, "unusable", f"{kind} files, but {truncate(facts.error, 120)}")
    where = "inside the rows" if isinstance(values[0], Embedded) else "by their paths"
    details = [
        f"{facts.side} pixels" if facts.side else "",
        f"{facts.sample_rate} Hz" if facts.sample_rate and kind == "audio" else "",
        f"up to {facts.seconds:.3g} s" if facts.seconds and kind != "image" else "",
        f"up to {max_items} per row" if max_items > 1 else "",
    ]
    note = ", ".join([f"{kind} files {where}", *filter(None, details)])
    known: dict[str, Kind] = {"image": "image", "audio": "audio", "video": "video"}
    return Column(name, known[kind], note, media=facts, max_items=min(max_items, _MAX_ITEMS))


def infer_embedded(name: str, values: Sequence[Embedded], sample: Sample, max_items: int = 1) -> Column:
    """Return the kind of a column of files inside the rows."""
    kinds = [kind_of_value(value) for value in values[:200]]
    common = max(set(kinds), key=kinds.count)
    if common is None or kinds.count(common) < _MOSTLY * len(kinds):
        return Column(name, "unusable", "bytes of an unknown or of several formats")
    return infer_files(name, common, values, sample, max_items)


def _infer_series(name: str, values: Sequence[Any], sample: Sample) -> Column:
    try:
        layout, steps = layout_of_files(list(read_first(values, sample.folder)))
    except FileNotFoundError as error:
        return Column(name, "unusable", f"names files, but {error.filename or values[0]} does not exist")
    except Exception as error:  # noqa: BLE001 - stores and formats have their own errors
        return Column(name, "unusable", f"names files that are no time series: {truncate(str(error), 120)}")
    return Column(name, "timeseries", "files with a time series each", layout=layout, length=steps)
