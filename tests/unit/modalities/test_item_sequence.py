"""Item sequences become codes and ages."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.modalities.item_sequence import ItemSequenceModality
from rayfuse.spec.encoders import CustomEncoderConfig
from rayfuse.spec.inputs import ItemSequenceInput

ROWS: list[Any] = [
    ["a", "b", "a"],
    [{"id": "b", "time": 1}, {"id": 7, "time": 2}],
    ["a", 7.0, "once"],
    None,
    5,
]


def modality(rows: list[Any] = ROWS, **settings: Any) -> ItemSequenceModality:
    encoder = CustomEncoderConfig(type="my.module:Encoder")
    options = ItemSequenceInput(type="item_sequence", column="history", encoder=encoder, **settings)
    return ItemSequenceModality(ItemSequenceModality.fit(options, rows))


def event(item: Any, time: Any) -> dict[str, Any]:
    return {"id": item, "time": time}


def test_frequent_items_are_in_the_vocabulary() -> None:
    reader = modality()
    assert reader.options.vocabulary == ["a", "7", "b"]
    assert ItemSequenceModality.fit(reader.options, []) is reader.options
    features = reader.process(reader.decode(["b", "once", "never", "7", 7]))
    assert features["items"].tolist() == [4, 1, 1, 3, 3]
    assert features["ages"].tolist() == [0] * 5
    summary = reader.summary()
    for row in ROWS:
        summary.update(row)
    assert summary.lines() == ["1 of 8 values are unknown: 'once' (1)"]
    assert modality(min_frequency=1).options.vocabulary == ["a", "7", "b", "once"]


def test_ids_have_one_name_in_any_form() -> None:
    reader = modality([[Decimal(1), "caf\u00e9", True]] * 2)
    codes = reader.process(reader.decode([1, "1", "cafe\u0301", "caf\u00e9 ", "true"]))["items"].tolist()
    assert sorted(reader.options.vocabulary or []) == ["1", "True", "caf\u00e9"]
    assert codes == [2, 2, 4, 4, 3]


def test_dates_are_midnight() -> None:
    sequence = modality().decode([event("a", date(2026, 1, 2)), event("b", datetime(2026, 1, 2, 1))])
    assert sequence.times is not None
    assert sequence.times[1] - sequence.times[0] == 3600


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
    assert modality(max_length=2).decode(["a", "b", "c"]).ids == ["b", "c"]
    timed = [event(name, 10 - n) for n, name in enumerate("abc")]
    assert modality(max_length=2).decode(timed).ids == ["b", "a"]


def test_sequences_are_padded_to_the_longest() -> None:
    reader = modality()
    batch = reader.collate([reader.process(reader.decode(["a", "b"])), reader.dummy_features()])
    assert batch["items"].tolist() == [[2, 4], [1, 0]]
    assert batch["item_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["ages"].shape == (2, 2)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a", "expected a list of items, got str"),
        ({"id": "a", "time": 1}, "expected a list of items, got dict"),
        (["a", None], "item 1: the id is missing"),
        (["a", math.nan], "item 1: the id is missing"),
        (["a", ["b"]], "item 1: expected a text or a number, got list"),
        (["a", event("b", 1)], "item 1: expected a text or a number, got dict"),
        ([event("b", 1), "a"], 'item 1: expected {"id": …, "time": …} as in the first item, got \'a\''),
        ([{"id": "a"}], 'item 0: expected {"id": …, "time": …}'),
        ([{"id": "a", "when": 1}], 'item 0: expected {"id": …, "time": …}'),
        ([event("a", "yesterday")], "item 0: expected a time in seconds or ISO 8601, got 'yesterday'"),
        ([event("a", None)], "item 0: expected a time in seconds"),
        ([event("a", True)], "item 0: expected a time in seconds"),
        ([event("a", math.inf)], "item 0: expected a time in seconds"),
        ([event("a", 10**400)], "item 0: expected a time in seconds"),
    ],
)
def test_invalid_sequences_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        modality().decode(value)


def test_an_empty_sequence_is_missing() -> None:
    with pytest.raises(MissingInputError, match="the list of items is empty"):
        modality().decode([])


def test_fit_rejects_rows_without_frequent_items() -> None:
    with pytest.raises(DataError, match="no training row has an item; check the column"):
        modality([])
    with pytest.raises(
        DataError, match="no training row has an item; the first value is 'a,b'; write lists of ids"
    ):
        modality(["a,b", "b"])
    with pytest.raises(
        DataError,
        match="min_frequency: none of the 2 items occurs 2 times in the training rows; use a lower value",
    ):
        modality([["a", "b"]])
