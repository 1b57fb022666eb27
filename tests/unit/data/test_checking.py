"""Rows are checked in pieces, here or elsewhere, and what batches need to know of them is noted."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs

from rayfuse.data import checking
from rayfuse.data.bad import BadRows
from rayfuse.data.dataset import load_dataset
from rayfuse.data.reading import Piece
from rayfuse.data.rows import BadRow
from rayfuse.data.store import Store


def backwards(work: Callable[[Piece], Piece], pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The last piece first, as a cluster might."""
    return map(work, reversed(pieces))


def test_pieces_may_be_done_in_any_order_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_FEWEST", 5)
    monkeypatch.setattr(checking, "_MOST", 7)
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
    again, there = load_dataset(job, Store.below(str(tmp_path / "store")), backwards)
    assert fitted == again
    assert here.findings == there.findings
    assert here.digests == there.digests
    for name, split in here.splits.items():
        assert [row.origin for row in split] == [row.origin for row in there.splits[name]]
        lengths = split.noted(checking.LENGTHS)
        assert lengths is not None
        assert lengths.tolist() == [min(32, len(row.values["text"])) for row in split]
    assert sum(map(len, here.bad.values())) == 5


def test_groups_are_those_of_the_task_that_wants_them(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "query": [1, "1", "x", 2.0][i % 4], "clicks": i % 3} for i in range(60)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    tasks = {"rank": {"type": "ranking", "column": "clicks", "group": "query"}}
    overrides = {"tasks": tasks, "train.early_stopping": None, "data.test": None}
    _, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **overrides))
    split = dataset.splits["train"]
    groups = split.noted(checking.GROUPS)
    assert groups is not None
    alike: dict[str, set[Any]] = {}
    for row, group in zip(split, groups.tolist(), strict=True):
        alike.setdefault(str(row.values["query"]), set()).add(group)
    assert {len(found) for found in alike.values()} == {1}
    assert len({group for found in alike.values() for group in found}) == len(alike) == 3
    assert split.noted(checking.LENGTHS) is None


def test_bad_rows_are_counted_without_end_and_named_as_far_as_one_reads() -> None:
    parts = []
    for part in range(3):
        rows = [BadRow(f"f:{part}-{i}", f"odd: {i}" if i % 2 else "even") for i in range(5000)]
        parts.append(BadRows.from_json(BadRows(rows).to_json()))
    whole = BadRows()
    for found in parts:
        whole.merge(found)
    assert len(whole) == 15000
    assert len(list(whole)) == 1000
    assert list(whole.skipped())[-1] == "skipped: 14000 more rows"
    assert whole.worst_offenders()[3] == "  … and 7497 more like these"
    many = BadRows(BadRow("f:1", "".join(chr(97 + int(d)) for d in str(i))) for i in range(3000))
    assert len(many.to_json()) < 200_000
    assert many.worst_offenders()[0].startswith("  f:1: ")
    assert "rows for" in many.worst_offenders()[-1]


def test_rows_in_several_splits_are_found(tmp_path: Path) -> None:
    marks = {"train": [[5, 1, 2**63], [2, 2**64 - 1, 2**64 - 1]], "test": [[9, 1, 1, 2**64 - 1], [2**63]]}
    found = {name: checking.Checked(name, tmp_path) for name in marks}
    for name, parts in marks.items():
        for part in parts:
            hashes = b"".join(mark.to_bytes(8, "big") + bytes(8) for mark in part)
            usable = np.ones(len(part), bool).tobytes()
            none: Any = {"lengths": b"", "groups": b"", "missing": "{}", "bad": BadRows().to_json()}
            found[name].add(0, {"usable": usable, "hashes": hashes, **none})
    assert list(checking.duplicates(found)) == [
        "duplicates: 1 rows of train repeat another of its rows",
        "duplicates: 1 rows of test repeat another of its rows",
        "WARNING duplicates: 4 rows of test are in train too; its metrics flatter the model",
    ]
    assert [found[name].usable for name in marks] == [6, 5]
