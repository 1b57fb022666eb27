"""Get a model folder onto a local disk, from the registry or from any URL, once."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import fsspec

from rayfuse.errors import DataError, NotReachable, RayfuseError, ResourceError
from rayfuse.registry.tracking import connect, explained, patient, tracking_uri
from rayfuse.registry.versions import get_version, resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_FOLDER = "artifacts/model"
"""Where the model folder lies in what MLflow stores."""

_MODEL_FILE = "rayfuse.json"
_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class LocalModel:
    """A model folder on this machine; name and version where it came from a registry."""

    folder: Path
    name: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Source:
    """Where several machines get one and the same model: an alias may move between the first and the last."""

    model: str
    """`models:/NAME/VERSION`, a folder or the URL of one."""
    tracking: str | None = None
    """MLflow's address; None: the one that each machine's own environment names."""
    name: str | None = None
    """Of the registered model; None where the folder says it."""
    version: int | None = None


def pin(model: str, tracking: str | None = None) -> Source:
    """The version that `models:/NAME@ALIAS` means now; a folder or URL is itself.

    An address of MLflow with credentials in it is left out, so that a source may be shown to anyone.
    """
    if not model.startswith("models:"):
        return Source(model)
    uri = tracking_uri(tracking)
    name, version = resolve(connect(uri, create=False), model)
    return Source(f"models:/{name}/{version}", None if "@" in urlsplit(uri).netloc else uri, name, version)


def fetch(model: str, tracking: str | None = None, cache: Path | None = None) -> LocalModel:
    """The model that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a folder or the URL of one means.

    MLflow (`tracking`, see `tracking_uri`) is only asked for `models:/…`.
    """
    if not model.startswith("models:"):
        return LocalModel(_from_url(model, cache or default_cache()))
    client = connect(tracking_uri(tracking), create=False)
    name, version = resolve(client, model)
    return LocalModel(download(client, f"models:/{name}/{version}", cache), name, version)


def download(client: "MlflowClient", model: str, cache: Path | None = None) -> Path:
    """The folder of a registered model (`models:/…`) on the local disk; `cache` keeps what came over a network.

    Raises SpecError for an unknown model, DataError for one that Rayfuse did not make or that arrived damaged.
    """
    name, number = resolve(client, model)
    version = get_version(client, name, number)
    with explained(client.tracking_uri):
        location = _location(client, version.source)
    local = _as_local(location)
    if local is not None:
        return _checked(local / ARTIFACT_FOLDER, model)

    def get(target: Path) -> None:
        import mlflow.artifacts

        with explained(client.tracking_uri), patient():
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location.rstrip('/')}/{ARTIFACT_FOLDER}",
                dst_path=str(target.parent),
                tracking_uri=client.tracking_uri,
            )
        if version.folder_digest and folder_digest(target) != version.folder_digest:
            raise DataError(f"{model}: arrived damaged, or was changed in the artifact store; try again")

    key = f"{name}-{number}-{hashlib.blake2b(location.encode(), digest_size=8).hexdigest()}"
    return _cached(cache or default_cache(), key, get, model)


def default_cache() -> Path:
    """The user's cache folder for models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayfuse" / "models"


def folder_digest(folder: Path) -> str:
    """Hash of the names and contents of all files of a folder."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _location(client: "MlflowClient", source: str) -> str:
    """Where MLflow keeps the artifacts of a version: a path or URL."""
    if not source.startswith("models:/m-"):
        return source
    return str(client.get_logged_model(source.removeprefix("models:/")).artifact_location)


def _from_url(url: str, cache: Path) -> Path:
    local = _as_local(url)
    if local is not None:
        return _checked(local.expanduser(), url)
    try:
        filesystem, path = fsspec.url_to_fs(url)
        files = filesystem.find(path, detail=True)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise NotReachable(f"{url}: cannot be read: {type(error).__name__}: {error}") from None
    if not files:
        raise DataError(f"{url}: no model folder there")
    # Its content may change under the same URL; a changed file has another size, tag or time.
    marks = [
        [name, *(str(info.get(key)) for key in ("size", "ETag", "mtime", "LastModified", "created"))]
        for name, info in sorted(files.items())
    ]
    key = f"{path.rstrip('/').rpartition('/')[2]}-{hashlib.blake2b(repr(marks).encode(), digest_size=8).hexdigest()}"

    def get(target: Path) -> None:
        try:
            filesystem.get(f"{path.rstrip('/')}/", f"{target}/", recursive=True)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - each store has its own errors
            raise NotReachable(f"{url}: cannot be read: {type(error).__name__}: {error}") from None

    return _cached(cache, key, get, url)


def _as_local(url: str) -> Path | None:
    """The path of a `file:` URL or of a plain path; None for another place."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if ":/" in url else Path(url)


def _checked(folder: Path, model: str) -> Path:
    if not (folder / _MODEL_FILE).is_file():
        raise DataError(f"{model}: no model folder there (no {_MODEL_FILE} in {folder})")
    return folder


def _cached(cache: Path, key: str, get: Callable[[Path], None], model: str) -> Path:
    """CACHE/KEY, filled by `get` unless it is there; complete or absent, whoever else fills it at the same time."""
    target = cache / key
    if target.is_dir():
        return _checked(target, model)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as partial:
            got = Path(partial, ARTIFACT_FOLDER.rpartition("/")[2])
            get(got)
            _checked(got, model)
            try:
                got.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except RayfuseError:
        raise
    except OSError as error:
        raise ResourceError(f"{cache}: {model} cannot be kept there: {error}") from None
    return target


def _remove_stale(cache: Path) -> None:
    """What a killed process left half-way."""
    for path in cache.glob(f"{_PARTIAL}*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
