"""Rows of the quality benchmarks, from the public data sets in their own layouts.

Media files stay in place; only rows are written, with absolute paths to images, clips and videos.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Row]:
    """Read rows from jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def entities(source: Path, target: Path) -> None:
    """Write WNUT 2017: a sentence per row, `words` and their IOB2 `tags`."""
    files = {
        "train": "wnut17train.conll",
        "validation": "emerging.dev.conll",
        "test": "emerging.test.annotated",
    }
    for split, name in files.items():
        write(target / f"{split}.jsonl", _sentences(source / "wnut17" / name))


def _sentences(path: Path) -> Iterator[Row]:
    """Parse sentences separated by blank lines, with words and tags separated by a tab."""
    for block in path.read_text(encoding="utf-8").replace("\n\t\n", "\n\n").split("\n\n"):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            yield {"words": [pair[0] for pair in pairs], "tags": [pair[1] for pair in pairs]}


def motions(source: Path, target: Path) -> None:
    """Write BasicMotions of the UEA archive: six channels × 100 steps per row, and the activity."""
    for split in ("train", "test"):
        text = (source / "sensors_uea" / f"BasicMotions_{split.upper()}.ts").read_text()
        lines = text.partition("@data\n")[2].splitlines()
        write(target / f"{split}.jsonl", map(_series, lines))


def _series(line: str) -> Row:
    *channels, label = line.split(":")
    return {
        "readings": [[float(number) for number in channel.split(",")] for channel in channels],
        "label": label,
    }


def captions(source: Path, target: Path) -> None:
    """Write OpenMoji: an image and its caption per row; for training also a row with the image's tags as caption.

    train.jsonl is to choose by validation.jsonl with, all.jsonl holds the rows of both.
    """
    folder = source / "openmoji_captions"
    splits = {
        split: [{**row, "image": str(folder / row["image"])} for row in read(folder / f"{name}.jsonl")]
        for split, name in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    for split in ("validation", "test"):
        write(target / f"{split}.jsonl", splits[split])
    for name, rows in {"train": splits["train"], "all": splits["train"] + splits["validation"]}.items():
        tagged = [{**row, "caption": ", ".join(row["tags"])} for row in rows if row["tags"]]
        write(target / f"{name}.jsonl", rows + tagged)


def sounds(source: Path, target: Path) -> None:
    """Write ESC-10: for each of the four folds, its clips for testing and those of the others for training."""
    folder = source / "esc10_16k"
    rows = [{**row, "audio": str(folder / row["audio"])} for row in read(folder / "all.jsonl")]
    for fold in sorted({row["fold"] for row in rows}):
        write(target / f"test{fold}.jsonl", (row for row in rows if row["fold"] == fold))
        write(target / f"train{fold}.jsonl", (row for row in rows if row["fold"] != fold))


def speech(source: Path, target: Path) -> None:
    """Write spoken captions of Flickr8k in three splits, and ten real utterances of pocketsphinx as real.jsonl."""
    folder = source / "captions"
    for split, name in {"train": "train", "validation": "val", "test": "test"}.items():
        write(target / f"{split}.jsonl", _clips(folder, read(folder / f"{name}.jsonl")))
    folder = source / "asr_pocketsphinx"
    write(target / "real.jsonl", _clips(folder, json.loads((folder / "all.json").read_text())))


def _clips(folder: Path, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield {"audio": str(folder / row["audio"]), "text": row["text"]}
