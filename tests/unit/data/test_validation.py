"""Validation of rows in items of work, and the columns that it stores."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs

from rayfuse.data import validation
from rayfuse.data.dataset import load_dataset
from rayfuse.data.ingest import WorkItem
from rayfuse.data.invalid_rows import InvalidRows
from rayfuse.data.rows import InvalidRow
from rayfuse.data.store import RowStore


def backwards(work: Callable[[WorkItem], WorkItem], pieces: Sequence[WorkItem]) -> Iterator[WorkItem]:
    """Map in reverse order, as a cluster might."""
    return map(work, reversed(pieces))


def test_results_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_MIN_ITEM_ROWS", 5)
    monkeypatch.setattr(validation, "_MAX_ITEM_ROWS", 7)
    job = tiny_jobs.tiny_job(tmp_path, **{"data.max_bad_rows": 0.5, "train.group_by_length": True})
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for place in (0, 6, 7, 30, 47):
        rows[place]["text"] = None
    half = [tiny_jobs.write_rows(tmp_path / f"train_{n}.jsonl", rows[n::2]) for n in range(2)]
    job = job.model_copy(
        update={"data": job.data.model_copy(update={"train": str(tmp_path / "train_*.jsonl")})}
    )
    assert len(half) == 2
    fitted, here = load_dataset(job)
    again, there = load_dataset(job, RowStore.create_in(str(tmp_path / "store")), backwards)
    assert fitted == again
    assert here.report == there.report
    assert here.digests == there.digests
    for name, split in here.splits.items():
        assert [row.origin for row in split] == [row.origin for row in there.splits[name]]
        lengths = split.get_column(validation.LENGTHS)
        assert lengths is not None
        assert lengths.tolist() == [min(32, len(row.values["text"])) for row in split]
    assert sum(map(len, here.invalid.values())) == 5


def test_groups_of_a_ranking_task(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "query": [1, "1", "x", 2.0][i % 4], "clicks": i % 3} for i in range(60)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    tasks = {"rank": {"type": "ranking", "column": "clicks", "query_column": "query"}}
    overrides = {"tasks": tasks, "train.early_stopping": None, "data.test": None}
    _, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **overrides))
    split = dataset.splits["train"]
    groups = split.get_column(validation.GROUPS)
    assert groups is not None
    alike: dict[str, set[Any]] = {}
    for row, group in zip(split, groups.tolist(), strict=True):
        alike.setdefault(str(row.values["query"]), set()).add(group)
    assert {len(found) for found in alike.values()} == {1}
    assert len({group for found in alike.values() for group in found}) == len(alike) == 3
    assert split.get_column(validation.LENGTHS) is None


def test_invalid_rows_are_counted_in_bounded_memory() -> None:
    parts = []
    for part in range(3):
        rows = [InvalidRow(f"f:{part}-{i}", f"odd: {i}" if i % 2 else "even") for i in range(5000)]
        parts.append(InvalidRows.from_json(InvalidRows(rows).to_json()))
    whole = InvalidRows()
    for found in parts:
        whole.merge(found)
    assert len(whole) == 15000
    assert len(list(whole)) == 1000
    assert list(whole.skipped_lines())[-1] == "skipped: 14000 more rows"
    assert whole.top_reasons()[3] == "  … and 7497 more like these"
    many = InvalidRows(InvalidRow("f:1", "".join(chr(97 + int(d)) for d in str(i))) for i in range(3000))
    assert len(many.to_json()) < 200_000
    assert many.top_reasons()[0].startswith("  f:1: ")
    assert "rows for" in many.top_reasons()[-1]


def test_duplicates_within_and_between_splits(tmp_path: Path) -> None:
    marks = {"train": [[5, 1, 2**63], [2, 2**64 - 1, 2**64 - 1]], "test": [[9, 1, 1, 2**64 - 1], [2**63]]}
    found = {name: validation.SplitStats(name, tmp_path) for name in marks}
    for name, parts in marks.items():
        for part in parts:
            hashes = b"".join(mark.to_bytes(8, "big") + bytes(8) for mark in part)
            usable = np.ones(len(part), bool).tobytes()
            none: Any = {"lengths": b"", "groups": b"", "missing": "{}", "invalid": InvalidRows().to_json()}
            found[name].add(0, {"valid": usable, "hashes": hashes, **none})
    assert list(validation.duplicate_warnings(found)) == [
        "duplicates: 1 rows of train are copies of other rows of it",
        "duplicates: 1 rows of test are copies of other rows of it",
        "WARNING duplicates: 4 rows of test are also in train; its metrics are too optimistic",
    ]
    assert [found[name].num_valid for name in marks] == [6, 5]


_FILE = {"bytes": None, "path": None}


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"type": "image", "size": 8, "max_items": 3}, ["train0.png"], [None, [], [None], [_FILE]]),
        ({"type": "image", "size": 8}, "train0.png", [None, _FILE]),
        ({"type": "item_sequence", "min_frequency": 1}, ["a", "b"], [None, []]),
        ({"type": "timeseries", "channels": 1}, [[1.0, 2.0]], [None, [[None, None]]]),
    ],
)
def test_what_the_model_does_not_get_is_missing_in_the_report(
    options: dict[str, Any], present: Any, absent: list[Any], tmp_path: Path
) -> None:
    encoder = {"type": "transformer" if options["type"] == "item_sequence" else "conv"}
    rows = [{"text": f"{i}", "x": present, "label": "ab"[i % 2]} for i in range(8)]
    rows += [{"text": f"{i}", "x": value, "label": "a"} for i, value in enumerate(absent)]
    tiny_jobs.make_rows(tmp_path, 3)  # writes train0.png
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    tiny_jobs.write_rows(tmp_path / "test.jsonl", rows)
    job = tiny_jobs.tiny_job(tmp_path, **{"inputs.x": {**options, "encoder": encoder, "optional": True}})
    _, dataset = load_dataset(job)
    missing = [line for line in dataset.report if line.startswith("missing: x") and " test " in line]
    assert missing == [
        f"missing: x in {len(absent)} of {len(rows)} test rows ({len(absent) / len(rows):.1%})"
    ]
