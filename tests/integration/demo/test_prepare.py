import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from rayfuse.demo import digits, speech
from rayfuse.demo.prepare import MANIFEST, make_data, make_models
from rayfuse.demo.questions import Split, answer, phrasings
from rayfuse.errors import DataError, ResourceError, SpecError

TRAIN, TEST = 96, 40


@pytest.fixture(scope="module", autouse=True)
def few_voices() -> Iterator[None]:
    """Four styles per split instead of 84 and 16, and the digits read once instead of twice per folder."""
    original = speech.voice_styles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "voice_styles", lambda split: original(split)[:8:2])
        patch.setattr(digits, "load_digits", cache(digits.load_digits))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few_voices: None) -> Path:
    return make_data(tmp_path_factory.mktemp("made") / "data", TRAIN, TEST)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a finished folder of this test's own."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"arith_{split}.jsonl").read_text().splitlines()]


def _content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def _age(folder: Path) -> int:
    return (folder / MANIFEST).stat().st_mtime_ns


def test_rows_have_the_right_shape_and_labels(folder: Path) -> None:
    splits: dict[Split, int] = {"train": TRAIN, "test": TEST}
    for split, count in splits.items():
        rows = _rows(folder, split)
        assert len(rows) == count
        operations = {text: operation for operation, text in phrasings(split)}
        for row in rows:
            assert list(row) == ["image", "audio", "text", "label", "op", "image_digit", "audio_digit"]
            assert row["op"] == operations[row["text"]]
            assert row["label"] == answer(row["op"], row["image_digit"], row["audio_digit"])
            assert row["image"].startswith(f"image/{split}/{row['image_digit']}_")
            assert row["audio"].startswith(f"audio/{split}/{row['audio_digit']}_")
        assert set(Counter(row["op"] for row in rows).values()) == {count // 4}


def test_files_are_readable_and_none_is_left_over(folder: Path) -> None:
    for kind in ("image", "audio"):
        named = {row[kind] for split in ("train", "test") for row in _rows(folder, split)}
        assert named == {path.relative_to(folder).as_posix() for path in (folder / kind).rglob("*.*")}
    for path in (folder / "image").rglob("*.png"):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((28, 28), "L")
    for path in (folder / "audio").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
        assert 0.1 < info.duration <= 1


def test_train_and_test_share_no_image_clip_or_phrasing(folder: Path) -> None:
    train, test = _rows(folder, "train"), _rows(folder, "test")
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    for kind in ("image", "audio"):
        contents = [{(folder / row[kind]).read_bytes() for row in rows} for rows in (train, test)]
        assert all(contents)
        assert not contents[0] & contents[1]


def test_images_name_their_own_digit(folder: Path) -> None:
    images, labels = digits.load_digits()
    for row in _rows(folder, "test"):
        index = int(Path(row["image"]).stem.split("_")[1])
        assert labels[index] == row["image_digit"]
        assert (folder / row["image"]).read_bytes() == digits.png_bytes(images[index])


def test_a_seed_gives_the_same_bytes_and_another_seed_other_rows(folder: Path, tmp_path: Path) -> None:
    again = make_data(tmp_path / "again", TRAIN, TEST)
    assert _content(again) == _content(folder)
    other = make_data(tmp_path / "other", TRAIN, TEST, seed=1)
    assert _rows(other, "train") != _rows(folder, "train")


def test_finished_folder_is_reused_with_other_files_in_it(folder: Path) -> None:
    age = _age(folder)
    (folder / "notes.txt").write_text("mine")
    assert make_data(folder, TRAIN, TEST) == folder
    assert _age(folder) == age
    assert (folder / "notes.txt").read_text() == "mine"


def test_folder_with_a_missing_file_is_created_again(folder: Path, tmp_path: Path) -> None:
    whole = _content(folder)
    (folder / "arith_test.jsonl").unlink()
    shutil.rmtree(folder / "audio")
    make_data(folder, TRAIN, TEST)
    assert _content(folder) == whole
    assert os.listdir(tmp_path) == ["data"]


def test_other_request_replaces_our_own_files_only(folder: Path) -> None:
    make_data(folder, TRAIN + 4, TEST)
    assert len(_rows(folder, "train")) == TRAIN + 4
    (folder / "notes.txt").write_text("mine")
    before = _content(folder)
    with pytest.raises(DataError, match=r"such as notes\.txt"):
        make_data(folder, TRAIN, TEST)
    assert _content(folder) == before


def test_changed_file_is_never_overwritten(folder: Path) -> None:
    with (folder / "arith_train.jsonl").open("a") as lines:
        lines.write("{}\n")
    with pytest.raises(DataError, match=r"such as arith_train\.jsonl"):
        make_data(folder, TRAIN, TEST)


def test_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "arith_train.jsonl").write_text("{}\n")
    for manifest in (None, "{}", "no json", '{"made_by": "someone", "files": {"arith_train.jsonl": 3}}'):
        if manifest is not None:
            (mine / MANIFEST).write_text(manifest)
        with pytest.raises(DataError, match="move them away"):
            make_data(mine, TRAIN, TEST)
        assert (mine / "arith_train.jsonl").read_text() == "{}\n"
    with pytest.raises(DataError, match="is a file"):
        make_data(mine / "arith_train.jsonl", TRAIN, TEST)


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make_data(tmp_path / "data", TRAIN, TEST)
    assert len(_rows(tmp_path / "data", "train")) == TRAIN


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(styles: Sequence[speech.VoiceStyle]) -> list[speech.Clip]:
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "synthesize_digits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_data(tmp_path / "data", TRAIN, TEST)
    assert os.listdir(tmp_path) == []


def test_folders_of_killed_runs_are_removed_after_an_hour(tmp_path: Path) -> None:
    old, new, foreign = (tmp_path / name for name in (".data.0123abcd.part", ".data.4567cdef.part", ".data"))
    for path in (old, new, foreign):
        path.mkdir()
        (path / "file").touch()
    for path in (old, foreign):
        os.utime(path, (0, time.time() - 3700))
    make_data(tmp_path / "data", TRAIN, TEST)
    assert sorted(os.listdir(tmp_path)) == [".data", ".data.4567cdef.part", "data"]


def test_more_rows_than_images_use_each_equally_often(tmp_path: Path) -> None:
    rows = _rows(make_data(tmp_path / "data", 4, 1500), "test")
    assert Counter(Counter(row["image"] for row in rows).values()) == {1: 500, 2: 500}
    assert set(Counter(row["audio"] for row in rows).values()) <= {37, 38}


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (-5, 1)])
def test_row_counts_below_one_are_rejected(tmp_path: Path, counts: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match=str(counts[0])):
        make_data(tmp_path / "data", *counts)
    assert os.listdir(tmp_path) == []


def test_models_are_copied_once(tmp_path: Path) -> None:
    assert make_models(tmp_path) == tmp_path
    model = tmp_path / "minilm"
    assert json.loads((model / "config.json").read_text())["hidden_size"] == 384
    assert json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]["digit"] > 0
    with (model / "model.safetensors").open("rb") as weights:
        header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    assert header["embeddings.word_embeddings.weight"]["shape"] == [30522, 384]
    age = _age(model)
    make_models(tmp_path)
    assert _age(model) == age


def test_another_model_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json"):
        make_models(tmp_path)
    assert (tmp_path / "minilm" / "config.json").read_text() == "{}"


def test_missing_model_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ResourceError, match=r"pip install 'rayfuse\[demo\]'"):
        make_models(tmp_path)
