"""Histories become codes and ages."""

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from rayfuse.errors import BadInput, DataError, MissingInput
from rayfuse.modalities.sequence import SequenceModality
from rayfuse.spec.encoders import CustomEncoder
from rayfuse.spec.inputs import SequenceInput

ROWS: list[Any] = [
    ["a", "b", "a"],
    [{"id": "b", "time": 1}, {"id": 7, "time": 2}],
    ["a", 7.0, "once"],
    None,
    5,
]


def modality(rows: list[Any] = ROWS, **settings: Any) -> SequenceModality:
    encoder = CustomEncoder(type="my.module:Encoder")
    options = SequenceInput(type="sequence", column="history", encoder=encoder, **settings)
    return SequenceModality(SequenceModality.fitted(options, rows))


def event(item: Any, time: Any) -> dict[str, Any]:
    return {"id": item, "time": time}


def test_items_that_occur_often_enough_are_known() -> None:
    reader = modality()
    assert reader.options.vocabulary == ["a", "7", "b"]
    assert SequenceModality.fitted(reader.options, []) is reader.options
    features = reader.process(reader.decode(["b", "once", "never", "7", 7]))
    assert features["items"].tolist() == [4, 1, 1, 3, 3]
    assert features["ages"].tolist() == [0] * 5
    assert list(reader.findings(ROWS)) == ["1 of 8 values are unknown: 'once' (1)"]
    assert modality(min_count=1).options.vocabulary == ["a", "7", "b", "once"]


def test_ages_count_from_the_newest_item() -> None:
    reader = modality()
    history = [event("a", 100), event("b", 10), event("a", 99.0)]
    features = reader.process(reader.decode(history))
    assert features["items"].tolist() == [4, 2, 2]
    np.testing.assert_allclose(features["ages"], np.log1p([90, 1, 0]), rtol=1e-6)
    assert {name: array.dtype for name, array in features.items()} == {
        "items": np.int64,
        "ages": np.float32,
        "item_mask": np.int64,
    }


@pytest.mark.parametrize(
    "time", ["2026-01-02T03:04:05Z", "2026-01-02 04:04:05+01:00", "2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5)]
)  # fmt: skip
def test_times_are_seconds_or_iso_8601(time: Any) -> None:
    seconds = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert modality().decode([event("a", time)]).times == [seconds]


def test_the_newest_items_are_read() -> None:
    assert modality(length=2).decode(["a", "b", "c"]).ids == ["b", "c"]
    timed = [event(name, 10 - n) for n, name in enumerate("abc")]
    assert modality(length=2).decode(timed).ids == ["b", "a"]


def test_histories_of_different_lengths_make_a_batch() -> None:
    reader = modality()
    batch = reader.collate([reader.process(reader.decode(["a", "b"])), reader.blank()])
    assert batch["items"].tolist() == [[2, 4], [1, 0]]
    assert batch["item_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["ages"].shape == (2, 2)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a", "a list of items belongs here, not str"),
        ({"id": "a", "time": 1}, "a list of items belongs here, not dict"),
        (["a", None], "item 1: its id is missing"),
        (["a", math.nan], "item 1: its id is missing"),
        (["a", ["b"]], "item 1: a text or a number belongs here, not list"),
        (["a", event("b", 1)], "item 1: a text or a number belongs here, not dict"),
        ([event("b", 1), "a"], 'item 1: {"id": …, "time": …} belongs here as elsewhere, not \'a\''),
        ([{"id": "a"}], 'item 0: {"id": …, "time": …} belongs here'),
        ([{"id": "a", "when": 1}], 'item 0: {"id": …, "time": …} belongs here'),
        ([event("a", "yesterday")], "item 0: a time in seconds or ISO 8601 belongs here, not 'yesterday'"),
        ([event("a", None)], "item 0: a time in seconds"),
        ([event("a", math.inf)], "item 0: a time in seconds"),
        ([event("a", 10**400)], "item 0: a time in seconds"),
    ],
)
def test_what_is_no_history(value: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        modality().decode(value)


def test_an_empty_history_is_absent() -> None:
    with pytest.raises(MissingInput, match="its list of items is empty"):
        modality().decode([])


def test_rows_that_teach_nothing() -> None:
    with pytest.raises(DataError, match="no training row has an item"):
        modality([[], None])
    with pytest.raises(
        DataError, match="none of its 2 items occurs 2 times in the training rows; lower `min_count`"
    ):
        modality([["a", "b"]])
