"""The folder for Ray's sockets under unusual temporary folders."""

import tempfile
from pathlib import Path

import pytest

from rayfuse.errors import SpecError
from rayfuse.temp_dirs import socket_base_dir


@pytest.fixture(autouse=True)
def only_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


@pytest.mark.parametrize("name", ["a b", "übung", "x" * 60, "tab\t", "50%", "a?b", "a#b"])
def test_a_temporary_folder_that_ray_cannot_use_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert socket_base_dir(70) == "/tmp"


def test_a_short_temporary_folder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/job-7")
    assert socket_base_dir(70) == "/scratch/job-7"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/scratch/a b", "a path of letters, digits"),
        ("/scratch/übung", "a path of letters, digits"),
        (f"/{'x' * 37}", "38 characters are above the limit of 37"),
        ("scratch", "not an absolute path"),
    ],
)
def test_a_folder_chosen_for_ray_is_rejected(
    monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(SpecError, match="RAY_TMPDIR.*or unset it") as caught:
        socket_base_dir(70)
    assert reason in str(caught.value)
