"""`rayfuse jobs` as far as it goes without a cluster."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rayfuse.cli import main
from rayfuse.cli.jobs import _data, _row, _table, short
from rayfuse.cluster.jobs import JobInfo

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "arguments", [["list"], ["status", "x"], ["logs", "x"], ["logs", "x", "--follow"], ["stop", "x"]]
)
def test_a_cluster_that_does_not_answer_is_not_reachable(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["jobs", *arguments, "--address", "127.0.0.1:1", "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert "http://127.0.0.1:1 does not answer" in error["message"]


def test_a_url_in_ray_address_is_the_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert main(["jobs", "list"]) == 4
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--address", "a:1", "--cluster", "c.yaml"],
        ["--address", "a:1", "--namespace", "n"],
        ["--cluster", "c.yaml", "--context", "n"],
    ],
)
def test_there_is_one_place(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main(["jobs", "list", *options]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "0s"), (0.9, "0s"), (7, "7s"), (60, "1m"), (200, "3m20s"), (18_000, "5h"), (187_260, "2d4h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert short(timedelta(seconds=seconds)) == shown


def test_a_row_tells_what_is_known() -> None:
    started, ended = NOW - timedelta(hours=2), NOW - timedelta(hours=1, minutes=30)
    done = JobInfo("a", "job", "FAILED", started, ended, 3, "no rows")
    assert _row(done, NOW) == ["a", "job", "FAILED", "2h", "30m", 3, "no rows"]
    assert _row(JobInfo("b", "", "PENDING"), NOW) == ["b", "-", "PENDING", "-", "-", None, "-"]
    assert _row(JobInfo("c", "sweep", "RUNNING", started), NOW)[3:5] == ["2h", "2h"]


def test_numbers_and_gaps_line_up() -> None:
    found = [JobInfo("a", "job", "SUCCEEDED", exit_code=0), JobInfo("longer", "job", "RUNNING")]
    lines = _table(found).splitlines()
    assert len({line.index("job") for line in lines[1:]}) == 1


def test_times_are_iso_in_json() -> None:
    found: dict[str, Any] = json.loads(json.dumps(_data(JobInfo("a", "job", "RUNNING", NOW))))
    assert found == {
        "name": "a",
        "kind": "job",
        "status": "RUNNING",
        "started": "2026-01-02T12:00:00+00:00",
        "ended": None,
        "exit_code": None,
        "message": "",
        "address": "",
    }
