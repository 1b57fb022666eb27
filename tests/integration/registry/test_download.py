from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rayfuse.errors import DataError, ResourceError, UnavailableError
from rayfuse.registry.download import (
    LocalModel,
    ModelSource,
    fetch,
    folder_digest,
    resolve_version,
)


def test_a_local_folder_stays_in_place(tiny: Path) -> None:
    assert fetch(str(tiny / "model")) == LocalModel(tiny / "model")
    assert fetch((tiny / "model").as_uri()).folder == tiny / "model"


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a model folder: no rayfuse\.json in"):
        fetch(str(tmp_path))
    with pytest.raises(
        DataError, match=r"none: no such folder; a model is a folder, its URL, models:/NAME@ALIAS"
    ):
        fetch(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"runs:/1/model: not a model; use models:/NAME@ALIAS"):
        fetch("runs:/1/model")


@pytest.fixture
def remote(tiny: Path) -> str:
    memory = fsspec.filesystem("memory")
    if memory.exists("/models"):
        memory.rm("/models", recursive=True)
    memory.put(f"{tiny}/model/", "/models/m/", recursive=True)
    return "memory://models/m"


def test_a_remote_folder_is_fetched_once(remote: str, tiny: Path, tmp_path: Path) -> None:
    folder = fetch(remote, cache_dir=tmp_path).folder
    assert folder_digest(folder) == folder_digest(tiny / "model")
    marker = folder / "marker"
    marker.touch()
    assert fetch(remote, cache_dir=tmp_path).folder == folder
    assert marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_remote_folder_that_changed_is_fetched_again(remote: str, tmp_path: Path) -> None:
    before = fetch(remote, cache_dir=tmp_path).folder
    fsspec.filesystem("memory").pipe_file("/models/m/rayfuse.json", b"{}")
    after = fetch(remote, cache_dir=tmp_path).folder
    assert after != before
    assert (after / "rayfuse.json").read_text() == "{}"


def test_a_failed_download_leaves_nothing(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")

    def break_off(source: str, target: str, recursive: bool) -> None:
        Path(target).mkdir()
        (Path(target) / "rayfuse.json").touch()
        raise RuntimeError("connection lost")

    monkeypatch.setattr(memory, "get", break_off)
    with pytest.raises(UnavailableError, match="connection lost"):
        fetch(remote, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_download_at_the_same_time(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    get = memory.get

    def get_after_another(source: str, target: str, recursive: bool) -> None:
        monkeypatch.setattr(memory, "get", get)
        fetch(remote, cache_dir=tmp_path)
        get(source, target, recursive=recursive)

    monkeypatch.setattr(memory, "get", get_after_another)
    folder = fetch(remote, cache_dir=tmp_path).folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "rayfuse.json").is_file()


def test_unwritable_cache(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be cached there"):
        fetch(remote, cache_dir=tmp_path / "file")


def test_an_empty_url_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a model folder: no files"):
        fetch("memory://nothing/here", cache_dir=tmp_path)


def test_an_alias_resolves_to_its_current_version(client: Any, add_version: Callable[..., int]) -> None:
    first = add_version("pinned", alias="champion")
    uri = client.tracking_uri
    assert resolve_version("models:/pinned@champion", uri) == ModelSource(
        f"models:/pinned/{first}", uri, "pinned", first
    )
    add_version("pinned", alias="champion")
    assert resolve_version(f"models:/pinned/{first}", uri).version == first
    assert resolve_version("models:/pinned@champion", uri).version == first + 1


def test_a_folder_or_url_resolves_to_itself() -> None:
    assert resolve_version("/models/m") == ModelSource("/models/m")
    assert resolve_version("s3://models/m", "http://user:password@mlflow") == ModelSource("s3://models/m")
