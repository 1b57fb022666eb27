"""`rayfuse jobs` without a cluster."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rayfuse.cli import main
from rayfuse.cli.jobs import format_duration, jobs_table, to_dict
from rayfuse.cluster.jobs import JobInfo

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "arguments", [["list"], ["status", "x"], ["logs", "x"], ["logs", "x", "--follow"], ["stop", "x"]]
)
def test_an_unreachable_cluster_is_exit_code_4(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["jobs", *arguments, "--address", "127.0.0.1:1", "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert "http://127.0.0.1:1 does not respond" in error["message"]


def test_ray_address_selects_the_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert main(["jobs", "list"]) == 4
    assert "http://127.0.0.1:1 does not respond" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--address", "a:1", "--cluster", "c.yaml"],
        ["--address", "a:1", "--namespace", "n"],
        ["--cluster", "c.yaml", "--context", "n"],
    ],
)
def test_cluster_options_are_mutually_exclusive(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["jobs", "list", *options]) == 2
    assert "mutually exclusive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "0s"), (0.9, "0s"), (7, "7s"), (60, "1m"), (200, "3m20s"), (18_000, "5h"), (187_260, "2d4h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == shown


def test_the_table_shows_what_is_known() -> None:
    started, ended = NOW - timedelta(hours=2), NOW - timedelta(hours=1, minutes=30)
    jobs = [
        JobInfo("a", "job", "FAILED", started, ended, 3, "no rows"),
        JobInfo("longer", "", "PENDING"),
        JobInfo("c", "sweep", "RUNNING", started),
    ]
    assert jobs_table(jobs, NOW).splitlines()[1:] == [
        "a       job    FAILED   2h   30m       3     no rows",
        "longer  -      PENDING  -    -         -     -",
        "c       sweep  RUNNING  2h   2h        -     -",
    ]


def test_times_are_iso_in_json() -> None:
    found: dict[str, Any] = json.loads(json.dumps(to_dict(JobInfo("a", "job", "RUNNING", NOW))))
    assert found == {
        "name": "a",
        "kind": "job",
        "status": "RUNNING",
        "started": "2026-01-02T12:00:00+00:00",
        "ended": None,
        "exit_code": None,
        "message": "",
        "dashboard_url": "",
    }
