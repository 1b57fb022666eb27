import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rayfuse.errors import DataError, NotReachable, ResourceError
from rayfuse.registry.fetching import LocalModel, Source, _cached, fetch, folder_digest, pin


def test_a_folder_is_itself(tiny: Path) -> None:
    assert fetch(str(tiny / "model")) == LocalModel(tiny / "model")
    assert fetch((tiny / "model").as_uri()).folder == tiny / "model"


def test_a_folder_without_a_model_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no model folder there \(no rayfuse\.json in"):
        fetch(str(tmp_path / "none"))


@pytest.fixture
def remote(tiny: Path) -> str:
    memory = fsspec.filesystem("memory")
    if memory.exists("/models"):
        memory.rm("/models", recursive=True)
    memory.put(f"{tiny}/model/", "/models/m/", recursive=True)
    return "memory://models/m"


def test_a_remote_folder_is_fetched_once(remote: str, tiny: Path, tmp_path: Path) -> None:
    folder = fetch(remote, cache=tmp_path).folder
    assert folder_digest(folder) == folder_digest(tiny / "model")
    marker = folder / "marker"
    marker.touch()
    assert fetch(remote, cache=tmp_path).folder == folder
    assert marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_remote_folder_that_changed_is_fetched_again(remote: str, tmp_path: Path) -> None:
    before = fetch(remote, cache=tmp_path).folder
    fsspec.filesystem("memory").pipe_file("/models/m/rayfuse.json", b"{}")
    after = fetch(remote, cache=tmp_path).folder
    assert after != before
    assert (after / "rayfuse.json").read_text() == "{}"


def test_a_fetch_that_breaks_leaves_nothing(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")

    def break_off(source: str, target: str, recursive: bool) -> None:
        Path(target).mkdir()
        (Path(target) / "rayfuse.json").touch()
        raise RuntimeError("connection lost")

    monkeypatch.setattr(memory, "get", break_off)
    with pytest.raises(NotReachable, match="connection lost"):
        fetch(remote, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_that_fetch_at_the_same_time_both_get_it(tiny: Path, tmp_path: Path) -> None:
    def get_while_another_finishes(target: Path) -> None:
        shutil.copytree(tiny / "model", target)
        shutil.copytree(tiny / "model", tmp_path / "key")

    assert _cached(tmp_path, "key", get_while_another_finishes, "m") == tmp_path / "key"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be kept there"):
        fetch(remote, cache=tmp_path / "file")


def test_an_empty_url_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model folder there"):
        fetch("memory://nothing/here", cache=tmp_path)


def test_an_alias_is_pinned_to_the_version_it_means_now(client: Any, add_version: Callable[..., int]) -> None:
    first = add_version("pinned", alias="champion")
    uri = client.tracking_uri
    assert pin("models:/pinned@champion", uri) == Source(f"models:/pinned/{first}", uri, "pinned", first)
    add_version("pinned", alias="champion")
    assert pin(f"models:/pinned/{first}", uri).version == first
    assert pin("models:/pinned@champion", uri).version == first + 1


def test_a_folder_or_url_is_pinned_to_itself() -> None:
    assert pin("/models/m") == Source("/models/m")
    assert pin("s3://models/m", "http://user:password@mlflow") == Source("s3://models/m")
