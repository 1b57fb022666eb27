"""Download of model folders, from the registry or any URL, to a local cache."""

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

from rayfuse.errors import DataError, RayfuseError, ResourceError, UnavailableError
from rayfuse.registry.mlflow_connection import connect, long_timeout, resolve_tracking_uri
from rayfuse.registry.mlflow_errors import translate_errors
from rayfuse.registry.versions import get_version, resolve_model_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_PATH = "artifacts/model"
"""Path of the model folder among the artifacts of an MLflow model."""

_MODEL_FILE = "rayfuse.json"
_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class LocalModel:
    """A model folder on this machine."""

    folder: Path
    """Path of the folder."""
    name: str | None = None
    """Registered model; None if it is not from a registry."""
    version: int | None = None
    """Version of the registered model."""


@dataclass(frozen=True)
class ModelSource:
    """A fixed model that several machines download, while an alias may move in between."""

    model: str
    """`models:/NAME/VERSION`, a folder or the URL of one."""
    tracking_uri: str | None = None
    """Tracking URI; None: that of each machine's environment."""
    name: str | None = None
    """Registered model; None for a folder or URL."""
    version: int | None = None
    """Version of the registered model."""


def resolve_version(model: str, tracking_uri: str | None = None) -> ModelSource:
    """Resolve an alias to a version; a folder or URL is returned as it is.

    A tracking URI with credentials is left out, so that the result may be logged.
    """
    if not model.startswith("models:"):
        return ModelSource(model)
    uri = resolve_tracking_uri(tracking_uri)
    name, version = resolve_model_uri(connect(uri, create=False), model)
    return ModelSource(
        f"models:/{name}/{version}", None if "@" in urlsplit(uri).netloc else uri, name, version
    )


def fetch(model: str, tracking_uri: str | None = None, cache_dir: Path | None = None) -> LocalModel:
    """Download a model (`models:/NAME@ALIAS`, `models:/NAME/VERSION`, a folder or its URL), and return its local folder.

    MLflow (`tracking_uri`, see `resolve_tracking_uri`) is used for `models:/…` only.
    """
    if not model.startswith("models:"):
        return LocalModel(_from_url(model, cache_dir or default_cache_dir()))
    client = connect(resolve_tracking_uri(tracking_uri), create=False)
    name, version = resolve_model_uri(client, model)
    return LocalModel(download(client, f"models:/{name}/{version}", cache_dir), name, version)


def download(client: "MlflowClient", model: str, cache_dir: Path | None = None) -> Path:
    """Download a registered model (`models:/…`) to `cache_dir`, and return its folder; local artifacts stay in place.

    Raises:
        SpecError: The model, alias or version does not exist.
        DataError: It is not a Rayfuse model, or the download is corrupt.
    """
    name, number = resolve_model_uri(client, model)
    version = get_version(client, name, number)
    with translate_errors(client.tracking_uri):
        location = _artifact_location(client, version.source)
    local = _local_path(location)
    if local is not None:
        return _validate_model_folder(local / ARTIFACT_PATH, model)

    def get(target: Path) -> None:
        import mlflow.artifacts

        with translate_errors(client.tracking_uri), long_timeout():
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location.rstrip('/')}/{ARTIFACT_PATH}",
                dst_path=str(target.parent),
                tracking_uri=client.tracking_uri,
            )
        if version.folder_digest and folder_digest(target) != version.folder_digest:
            raise DataError(
                f"{model}: the download does not match the registered digest; try again, or register the model again if its "
                "artifacts were changed"
            )

    key = f"{name}-{number}-{hashlib.blake2b(location.encode(), digest_size=8).hexdigest()}"
    return _download_to_cache(cache_dir or default_cache_dir(), key, get, model)


def default_cache_dir() -> Path:
    """Return the user's cache folder for models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayfuse" / "models"


def folder_digest(folder: Path) -> str:
    """Return a hash of the names and contents of all files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _artifact_location(client: "MlflowClient", source: str) -> str:
    """Return the path or URL of the artifacts of a version."""
    if not source.startswith("models:/m-"):
        return source
    return str(client.get_logged_model(source.removeprefix("models:/")).artifact_location)


def _from_url(url: str, cache_dir: Path) -> Path:
    local = _local_path(url)
    if local is not None:
        return _validate_model_folder(local.expanduser(), url)
    if "://" not in url:
        raise DataError(
            f"{url}: not a model; use models:/NAME@ALIAS, models:/NAME/VERSION, a model folder or its URL"
        )
    try:
        filesystem, path = fsspec.url_to_fs(url)
        files = filesystem.find(path, detail=True)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise UnavailableError(f"{url}: not readable: {type(error).__name__}: {error}") from None
    if not files:
        raise DataError(f"{url}: not a model folder: no files")
    # Content may change under the same URL; a changed file has another size, ETag or time.
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
            raise UnavailableError(f"{url}: not readable: {type(error).__name__}: {error}") from None

    return _download_to_cache(cache_dir, key, get, url)


def _local_path(url: str) -> Path | None:
    """Return the path of a `file:` URL or a plain path; None for a remote URL."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if ":/" in url else Path(url)


def _validate_model_folder(folder: Path, model: str) -> Path:
    if not folder.exists():
        raise DataError(
            f"{model}: no such folder; a model is a folder, its URL, models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    if not (folder / _MODEL_FILE).is_file():
        raise DataError(f"{model}: not a model folder: no {_MODEL_FILE} in {folder}")
    return folder


def _download_to_cache(cache_dir: Path, key: str, get: Callable[[Path], None], model: str) -> Path:
    """Return CACHE_DIR/KEY, which `get` fills if it does not exist; it is never incomplete, also with several processes."""
    target = cache_dir / key
    if target.is_dir():
        return _validate_model_folder(target, model)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache_dir)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache_dir) as partial:
            downloaded = Path(partial, ARTIFACT_PATH.rpartition("/")[2])
            get(downloaded)
            _validate_model_folder(downloaded, model)
            try:
                downloaded.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except RayfuseError:
        raise
    except OSError as error:
        raise ResourceError(
            f"{cache_dir}: {model} cannot be cached there ({error}); free space, or set XDG_CACHE_HOME to another folder"
        ) from None
    return target


def _remove_stale(cache_dir: Path) -> None:
    """Remove partial downloads that a killed process has left."""
    for path in cache_dir.glob(f"{_PARTIAL}*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
