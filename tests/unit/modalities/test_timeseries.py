"""Time series from lists and files, their scales, and invalid ones."""

import io
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfuse.errors import DataError, InvalidInputError, MissingInputError
from rayfuse.modalities.timeseries import TimeSeriesModality
from rayfuse.spec.encoders import CustomEncoderConfig
from rayfuse.spec.inputs import TimeseriesInput

NAMES = ["x", "y"]


def options(channels: Any = NAMES, **settings: Any) -> TimeseriesInput:
    encoder = CustomEncoderConfig(type="my.module:Encoder")
    return TimeseriesInput(type="timeseries", column="series", encoder=encoder, channels=channels, **settings)


def plain(channels: Any = NAMES, **settings: Any) -> TimeSeriesModality:
    """Without any scaling."""
    n = channels if isinstance(channels, int) else len(channels)
    return TimeSeriesModality(options(channels, center=[0.0] * n, scale=[1.0] * n, **settings))


def parquet(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


READINGS = [[1.0, 2.0, None], [4.0, math.nan, 6.0]]


@pytest.mark.parametrize(
    "value",
    [
        READINGS,
        tuple(map(tuple, READINGS)),
        {"y": READINGS[1], "x": READINGS[0]},
        [np.array([1, 2, np.nan]), np.array([4, np.nan, 6])],
        b"x,y\n1,4\n2,\nnan,6\n",
        b"\xef\xbb\xbfy,when,x\r\n4,noon,1\r\n,one,2\r\n6,two,NaN\r\n",
        b"1,4\n2,\n,6\n",
        json.dumps(READINGS).encode(),
        b' {"x": [1, 2, null], "y": [4, null, 6]}',
        parquet(when=["a", "b", "c"], y=[4, None, 6], x=[1.0, 2.0, None]),
    ],
)
def test_all_formats_decode_to_the_same_values(value: Any) -> None:
    features = plain().process(plain().decode(value))
    np.testing.assert_array_equal(features["values"], [[1, 2, 0], [4, 0, 6]])
    np.testing.assert_array_equal(features["observed"], [[1, 1, 0], [1, 0, 1]])
    assert features["step_mask"].tolist() == [1, 1, 1]
    assert features["values"].dtype == features["observed"].dtype == np.float32


@pytest.mark.parametrize(
    ("content", "options", "steps"),
    [
        (b"NA\n1\n2\n", {"channels": 1}, [[math.nan, 1, 2]]),
        (b"NA,NA\n1,2\n", {"channels": 2}, [[math.nan, 1], [math.nan, 2]]),
        (b"1,0\n5,6\n", {"channels": ["0", "1"]}, [[6], [5]]),
        (b"5,6\n7,8\n", {"channels": ["0", "1"]}, [[5, 7], [6, 8]]),
        (b"t,0,1\n9,5,6\n", {"channels": ["0", "1"]}, [[5], [6]]),
        (b"x;y\r\n1;2\r\n", {}, [[1], [2]]),
        (b"1\t2\r3\t4\r", {}, [[1, 3], [2, 4]]),
        (b"1,5;2,5\n3,5;4,5\n", {"decimal": ","}, [[1.5, 3.5], [2.5, 4.5]]),
        (b'"1,5","2,5"\n', {"decimal": ","}, [[1.5], [2.5]]),
        (b'"1,5";"2,5"\n', {"decimal": ","}, [[1.5], [2.5]]),
        (b"1,5\n2,5\n", {"channels": 1, "decimal": ","}, [[1.5, 2.5]]),
    ],
)
def test_headers_and_delimiters_of_csv(content: bytes, options: dict[str, Any], steps: list[Any]) -> None:
    np.testing.assert_array_equal(plain(**options).decode(content), steps)


def test_decimals_of_parquet_are_numbers() -> None:
    assert plain().decode([[Decimal("1.5"), None], [2, 3]])[0, 0] == 1.5


def test_one_channel_needs_no_list_of_lists() -> None:
    for value in ([1, 2, 3], [[1, 2, 3]], b"1\n2\n3\n", b"speed\n1\n2\n3\n"):
        assert plain(1).decode(value).tolist() == [[1, 2, 3]]


def test_the_newest_steps_are_read() -> None:
    assert plain(1, max_steps=2).decode([1, 2, 3]).tolist() == [[2, 3]]


def test_scales_come_from_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    rows: list[Any] = [[list(rng.normal(5, 2, 300)), [7.0] * 300] for _ in range(10)]
    rows[0][0][0] = 1e9  # an outlier has no effect
    fitted = TimeSeriesModality.fit(options(), [*rows, "no such file", [[1]]])
    assert fitted.center == pytest.approx([5, 7], abs=0.2)
    assert fitted.scale == pytest.approx([2, 1], abs=0.2)
    assert TimeSeriesModality.fit(fitted, []) is fitted
    modality = TimeSeriesModality(fitted)
    values = modality.process(modality.decode(rows[0]))["values"]
    assert values[0].max() == 100
    assert values[0, 1:].std() == pytest.approx(1, abs=0.2)
    assert not values[1].any()
    standard = TimeSeriesModality.fit(options(scaling="standard"), [[[1.0, 3.0], [0.0, 4.0]]])
    assert (standard.center, standard.scale) == ([2, 2], [1, 2])


def test_fit_rejects_rows_without_values() -> None:
    with pytest.raises(DataError, match="no training row has a valid time series"):
        TimeSeriesModality.fit(options(), [5, None])
    with pytest.raises(DataError, match="the last error: 3 channels, but this input has 2"):
        TimeSeriesModality.fit(options(), [[[1], [2], [3]]])
    with pytest.raises(DataError, match="channel y: no training row has a value; leave the channel out"):
        TimeSeriesModality.fit(options(), [[[1, 2], [None, None]]])


def test_series_are_padded_to_the_longest() -> None:
    modality = plain()
    batch = modality.collate([modality.process(modality.decode(READINGS)), modality.dummy_features()])
    assert batch["values"].shape == batch["observed"].shape == (2, 2, 3)
    assert batch["step_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([[1]], r"1 channel, but this input has 2 \(x, y\)"),
        ([[1]] * 3, r"3 channels, but this input has 2 \(x, y\)"),
        ([], r"0 channels, but this input has 2"),
        ([1, 2], "channel x: expected a list of values, got int"),
        ({"x": [1], "z": [2]}, "channel `y` is missing; given: x, z; required: x, y"),
        (b"x,z\n1,2\n", "channel `y` is missing; given: x, z"),
        (b"1,2,3\n", "3 channels, but this input has 2"),
        ([[1, 2], [3]], "channel y has 1 step and x 2; use null"),
        ([[], []], "the time series has no steps"),
        (b"x,y\n", "the time series has no steps"),
        ([[1, "2"], [3, 4]], "channel x: expected a number or null, got '2'"),
        (b"x,y\n1,high\n", "channel y: expected a number or null, got 'high'"),
        ([[1, [2]], [3, 4]], r"channel x: expected a number or null, got \[2\]"),
        ([[[1]], [[3]]], "channel x: expected numbers, got lists"),
        ([[1, math.inf], [3, 4]], "channel x: a value is infinite or above"),
        ([[1, 10**400], [3, 4]], "channel x: a value is infinite or above"),
        (b"", "the file is empty"),
        (b"\x1c\n", "1 channel, but this input has 2"),
        (b"\xef\xbb\xbf\n", "the file is empty"),
        (b"\xff\xfe", "neither parquet nor UTF-8 text"),
        (b"PAR1 and no more", "not a readable parquet file"),
        (parquet(x=[1.0], y=[2.0])[:-20], "not a readable parquet file"),
        (parquet(x=["a"], y=[2.0]), "channel x: expected numbers, got a column of string"),
        (b"[[1, 2", "not JSON"),
        (b'"x\n', "not CSV"),
        (b"x,y\n1\n", "line 2 has 1 cells, the first 2"),
        (b"x,x\n1,2\n", "2 columns have the name `x`; rename all but one"),
        (5, "expected a list of values for each channel, or a file, got int"),
        ("x.csv", "got str"),
    ],
)
def test_invalid_series_are_rejected(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem) as found:
        plain().decode(value)
    assert not isinstance(found.value, MissingInputError)


def test_a_series_without_values_is_missing() -> None:
    with pytest.raises(MissingInputError, match="the time series has no values"):
        plain().decode([[None, None], [None, None]])


@pytest.mark.parametrize("value", [[[1, 4], [2, None], [None, 6]], b"[[1, 4], [2, null], [null, 6]]"])
def test_steps_may_come_first_in_lists(value: Any) -> None:
    decoded = plain(2, layout="channels_last").decode(value)
    np.testing.assert_array_equal(decoded, [[1, 2, np.nan], [4, np.nan, 6]])


def test_the_layout_is_that_of_lists_only() -> None:
    modality = plain(layout="channels_last")
    np.testing.assert_array_equal(modality.decode(b"x,y\n1,4\n2,5\n"), [[1, 2], [4, 5]])
    np.testing.assert_array_equal(modality.decode({"x": [1, 2], "y": [4, 5]}), [[1, 2], [4, 5]])
    np.testing.assert_array_equal(plain(1, layout="channels_last").decode([1, 2]), [[1, 2]])


def test_the_example_and_schema_follow_the_layout() -> None:
    modality = plain(2, layout="channels_last")
    assert modality.decode(modality.example()).shape == (2, 3)
    assert modality.json_schema()["items"]["maxItems"] == 2


def test_a_step_has_a_value_per_channel() -> None:
    with pytest.raises(InvalidInputError, match="step 1: expected a list of 2 values, one per channel"):
        plain(2, layout="channels_last").decode([[1, 2], [1, 2, 3]])
