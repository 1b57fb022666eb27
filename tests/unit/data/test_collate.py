"""Collation of samples."""

import numpy as np
import pytest
import torch

from rayfuse.data.collate import collate
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import DataError


def text(value: str, target: int = 0) -> Sample:
    ids = np.frombuffer(value.encode(), dtype=np.uint8).astype(np.int64) + 1
    features = {"text": [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]}
    return Sample(features, {"text": [value.encode()]}, {"answer": target})


def test_equal_values_are_stored_once(preprocessor: Preprocessor) -> None:
    batch = collate(
        [text("ab", 1), text("c", 2), text("ab", 0), Sample({}, {}, {"answer": 1})], preprocessor.modalities
    )
    part = batch.inputs["text"]
    assert part.index.tolist() == [[0], [1], [0], [-1]]
    assert part.features is not None
    assert part.features["input_ids"].tolist() == [[98, 99], [100, 0]]
    assert part.features["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.targets["answer"].tolist() == [1, 2, 0, 1]
    assert batch.weights.tolist() == [1, 1, 1, 1]
    assert batch.inputs["image"].features is None
    assert batch.inputs["image"].index.tolist() == [[-1]] * 4


def test_values_with_different_keys_are_all_stored(preprocessor: Preprocessor) -> None:
    """Keys are hashes of raw values: equal decoded values may be encoded twice."""
    first, second = text("ab"), Sample(text("ab").features, {"text": [b"other"]}, {"answer": 0})
    assert collate([first, second], preprocessor.modalities).inputs["text"].index.tolist() == [[0], [1]]


def test_dummies_and_fillers(preprocessor: Preprocessor) -> None:
    empty = collate([], preprocessor.modalities, add_dummies=True)
    assert empty.batch_size == 1
    assert empty.weights.tolist() == [0]
    assert empty.targets == {}
    for part in empty.inputs.values():
        assert part.features is not None
        assert all(len(tensor) == 1 for tensor in part.features.values())
        assert part.index.tolist() == [[-1]]
    alone = collate([text("ab")], preprocessor.modalities, add_dummies=True)
    assert alone.weights.tolist() == [1]
    assert alone.inputs["image"].features is not None
    assert alone.inputs["image"].index.tolist() == [[-1]]


def test_select_inputs(rows: list[Row], preprocessor: Preprocessor) -> None:
    batch = collate([preprocessor.from_row(row) for row in rows[:6]], preprocessor.modalities)
    chosen = batch.select_inputs(["text"])
    assert chosen.inputs["text"].index.tolist() == batch.inputs["text"].index.tolist()
    assert chosen.inputs["image"].index.tolist() == [[-1]] * 6
    assert batch.inputs["image"].index.tolist() != [[-1]] * 6
    assert chosen.targets is batch.targets
    moved = batch.to(torch.device("cpu"))
    assert moved.inputs["text"].features is not None
    assert moved.batch_size == 6


def test_samples_of_different_shapes_are_rejected(preprocessor: Preprocessor) -> None:
    def image(side: int) -> Sample:
        pixels = np.zeros((3, side, side), dtype=np.float32)
        return Sample({"image": [{"pixel_values": pixels}]}, {"image": [bytes([side])]}, {})

    with pytest.raises(
        DataError, match=r"pixel_values: samples of different shapes \(\(3, 4, 4\), \(3, 5, 5\)\)"
    ):
        collate([image(4), image(5)], preprocessor.modalities)
