from pathlib import Path

import fsspec
import pytest

from rayfuse.registry.journal import Journal, read_journal

RECORD = {"time": 1.0, "step": 1, "metrics": {"loss": float("nan")}}


def steps(url: object) -> list[int]:
    return [record["step"] for record in read_journal(str(url))]


def test_appended_records_are_readable_before_close(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "m.jsonl")
    journal.append([RECORD, {**RECORD, "step": 2}])
    assert steps(tmp_path / "deep" / "m.jsonl") == [1, 2]


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "metr')
    journal = Journal(path)
    journal.append([{"step": 3}])
    journal.close()
    assert steps(path) == [1, 3]


def test_no_journal_has_no_records(tmp_path: Path) -> None:
    assert steps(tmp_path / "none.jsonl") == []


def test_a_remote_journal_is_written_at_flush_and_continued_by_the_next_process() -> None:
    url = "memory://journals/m.jsonl"
    first = Journal(url)
    first.append([{"step": 1}])
    assert not fsspec.filesystem("memory").exists("/journals/m.jsonl")
    first.flush()
    assert steps(url) == [1]
    first.close()
    second = Journal(url)
    second.append([{"step": 2}])
    second.close()
    assert steps(url) == [1, 2]


def test_an_unwritable_journal_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file" / "m.jsonl").append([RECORD])
