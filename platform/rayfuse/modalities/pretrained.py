"""Tokenizers and processors of pretrained encoders, from the Hugging Face hub, a folder or a URL."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from rayfuse.errors import DataError
from rayfuse.modalities.huggingface_errors import load_error_reason
from rayfuse.modalities.vision_language import disable_tiling

SAFE_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Suffixes of the files that are downloaded: weights, settings, vocabularies and templates, but no code or pickles."""

WHISPER_STRIDE = 320
"""Audio samples per position of Whisper's encoder: two hops of its spectrogram."""


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a pretrained model. Raises DataError if it cannot be read, or has no vocabulary."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, model, "tokenizer")
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # made up from config.json, where files are missing
        raise DataError(
            f"{model}: cannot load the tokenizer: it has no vocabulary; save it there with "
            "`tokenizer.save_pretrained`"
        )
    return tokenizer


def load_config(model: str) -> Any:
    """Load the configuration of a pretrained model. Raises DataError if it cannot be read."""
    from transformers import AutoConfig

    return _load(AutoConfig, model, "configuration")


def load_generation_config(model: str) -> Any:
    """Load a language model's settings for generation; without its optional file, those of its configuration.

    Raises DataError if neither can be read.
    """
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):
        return GenerationConfig.from_pretrained(resolve_model_path(model))
    return GenerationConfig.from_model_config(load_config(model))


def load_image_processor(model: str) -> Any:
    """Load the image processor of a pretrained model, which cuts no image into tiles.

    Raises DataError if it cannot be read.
    """
    from transformers import AutoImageProcessor

    return disable_tiling(_load(AutoImageProcessor, model, "image processor", backend="pil"))


def whisper_num_positions(samples: int) -> int:
    """Return the number of positions that a 16 kHz clip takes in Whisper's encoder: one per 20 ms."""
    return -(-samples // WHISPER_STRIDE)


def load_feature_extractor(model: str) -> Any:
    """Load the audio feature extractor of a pretrained model. Raises DataError if it cannot be read."""
    from transformers import AutoFeatureExtractor

    return _load(AutoFeatureExtractor, model, "feature extractor")


@lru_cache(maxsize=64)
def resolve_model_path(model: str) -> str:
    """Return a model's local folder, downloaded first if `model` is a URL; a hub id is returned unchanged.

    Downloads are cached in ~/.cache/rayfuse/pretrained (or below XDG_CACHE_HOME) by the names, sizes and dates of the
    files. Raises DataError if nothing can be read at the URL, or if it is an adapter without its model.
    """
    folder = _local_path(model)
    _reject_adapter(model, Path(folder))
    return folder


def resolve_adapter_path(adapter: str) -> Path:
    """Return the local folder of an adapter of PEFT, downloaded first if it is at a URL.

    Raises DataError if it has no configuration, or no weights as safetensors.
    """
    folder = Path(_local_path(adapter))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise DataError(
                f"{adapter}: no {name}; save the adapter with `save_pretrained` of PEFT, which writes safetensors"
            )
    return folder


def _local_path(model: str) -> str:
    if "://" not in model:
        return model
    import fsspec

    try:
        fs, top = fsspec.url_to_fs(model)
        found = fs.find(top, detail=True)
        files = {path: about for path, about in found.items() if path.endswith(SAFE_SUFFIXES)}
        if not files:
            raise FileNotFoundError("no model files found")
        target = _cache_dir() / _fingerprint(model, files)
        if not target.is_dir():
            _download(fs, {path: os.path.relpath(path, top) for path in files}, target)
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise DataError(f"{model}: cannot read the model: {type(error).__name__}: {error}") from None
    return str(target)


def download_model(model: str) -> Path:
    """Return a pretrained model's local folder, downloaded first if it is at a URL or on the hub.

    Raises DataError if it is in none of these places.
    """
    folder = Path(resolve_model_path(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[f"*{ending}" for ending in SAFE_SUFFIXES]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise DataError(
            f"{model}: no model of this id on the Hugging Face hub or in its local cache "
            f"({type(error).__name__}); write the path of a folder with ./ or / at its beginning"
        ) from None


def _reject_adapter(model: str, folder: Path) -> None:
    """Raise DataError if a folder has an adapter of PEFT, but no model."""
    adapter = folder / "adapter_config.json"
    if (folder / "config.json").exists() or not adapter.is_file():
        return
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    raise DataError(
        f"{model}: an adapter of PEFT, not a model; name its model ({base or 'see its documentation'}) here and the "
        "adapter as `lora.init_from`, or merge it into its model with `PeftModel.from_pretrained(base, "
        "adapter).merge_and_unload().save_pretrained(folder)`, save the tokenizer or processor there too, and use "
        "that folder"
    )


def _download(fs: Any, files: dict[str, str], target: Path) -> None:
    """Download atomically, as other processes may download the same model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for path, name in files.items():
            inside = waiting / name
            if not inside.resolve().is_relative_to(waiting.resolve()):
                raise ValueError(f"file name outside the model folder: {name}")
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


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rayfuse", "pretrained")


def _load(auto_class: Any, model: str, component: str, **options: Any) -> Any:
    folder = resolve_model_path(model)
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:
        raise DataError(f"{model}: cannot load the {component}: {load_error_reason(error)}") from error
