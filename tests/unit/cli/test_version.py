"""`rayfuse version`."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from rayfuse import __version__
from rayfuse.cli import main, version


def test_versions_come_from_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rayfuse"] == __version__
    assert set(answer["packages"]) == set(version.PACKAGES)


def test_packages_that_are_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(version, "installed", absent)
    assert main(["version"]) == 0
    assert "torch          -" in capsys.readouterr().out
