"""The processors that belong to a pretrained encoder: read from its own folder, which may be at a URL."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayfuse.errors import DataError

SAFE_ENDINGS = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Endings of a pretrained encoder's files that are used: weights, settings, vocabularies and templates; no code."""

WHISPER_STEP = 320
"""Samples between two positions of Whisper's encoder: two hops of its spectrogram."""


def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, model, "tokenizer")


def image_processor(model: str) -> Any:
    from transformers import AutoImageProcessor

    return _load(AutoImageProcessor, model, "image processor", backend="pil")


def whisper_positions(samples: int) -> int:
    """Positions of Whisper's encoder that a clip of 16000 samples a second takes: one for every 20 ms."""
    return -(-samples // WHISPER_STEP)


def feature_extractor(model: str) -> Any:
    from transformers import AutoFeatureExtractor

    return _load(AutoFeatureExtractor, model, "feature extractor")


@lru_cache(maxsize=64)
def local_folder(model: str) -> str:
    """A model's folder on this machine, fetched first where it is at a URL; an id of a hub as it is.

    Fetched folders are kept in ~/.cache/rayfuse/pretrained (or below XDG_CACHE_HOME) under a name that changes with
    the files' names, sizes and dates. Raises DataError where nothing can be read at the URL.
    """
    if "://" not in model:
        return model
    import fsspec

    try:
        fs, top = fsspec.url_to_fs(model)
        found = fs.find(top, detail=True)
        files = {path: about for path, about in found.items() if path.endswith(SAFE_ENDINGS)}
        if not files:
            raise FileNotFoundError("no files of a model there")
        target = _cache() / _fingerprint(model, files)
        if not target.is_dir():
            _fetch(fs, {path: os.path.relpath(path, top) for path in files}, target)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise DataError(f"{model}: cannot be read: {type(error).__name__}: {error}") from None
    return str(target)


def whole_folder(model: str) -> Path:
    """A pretrained encoder's folder on this machine, fetched first where it is at a URL or on the hub."""
    folder = Path(local_folder(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=[f"*{ending}" for ending in SAFE_ENDINGS]))


def _fetch(fs: Any, files: dict[str, str], target: Path) -> None:
    """Whole or not at all: others may fetch the same, and this may be cut short."""
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for path, name in files.items():
            inside = waiting / name
            if not inside.resolve().is_relative_to(waiting.resolve()):
                raise ValueError(f"a file's name leads out of the folder: {name}")
            inside.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(path, str(inside))
        with contextlib.suppress(OSError):  # another process was faster
            waiting.rename(target)
    finally:
        shutil.rmtree(waiting, ignore_errors=True)


def _fingerprint(url: str, files: dict[str, dict[str, Any]]) -> str:
    marks = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "created")
    lines = [
        f"{path} {[str(about[mark]) for mark in marks if mark in about]}"
        for path, about in sorted(files.items())
    ]
    return hashlib.sha256("\n".join([url, *lines]).encode()).hexdigest()[:32]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rayfuse", "pretrained")


def _load(kind: Any, model: str, what: str, **options: Any) -> Any:
    folder = local_folder(model)
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # noqa: BLE001 - the Rust tokenizers raise plain Exception for a damaged file
        reason = str(error).partition("\n")[0]
        raise DataError(f"{model}: its {what} cannot be read: {reason}") from None
