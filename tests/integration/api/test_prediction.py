"""Batch prediction with `rayfuse.predict`: its rows, errors and resumption."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from endpoints import serve_in_thread

import rayfuse
from rayfuse.api.models import Model
from rayfuse.data import row_chunks
from rayfuse.data.rows import Row
from rayfuse.errors import DataError, SpecError
from rayfuse.model.predictor import Predictor


@pytest.fixture
def data(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Path]:
    """Return a file of 12 valid rows, a line that is no JSON, and a row without a required input."""
    path = folder / "data.jsonl"
    lines = [json.dumps({"id": number, **row}) for number, row in enumerate(rows)]
    path.write_text("\n".join([*lines, "{", json.dumps({"id": 13})]) + "\n")
    yield path
    path.unlink()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 4)


def test_each_row_has_a_prediction_or_an_error(
    model: Model,
    data: Path,
    rows: list[dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = rayfuse.predict(model, data, tmp_path / "out.parquet", batch_size=5)
    assert (result.rows, result.invalid, result.resumed) == (14, 2, 0)
    frame = pd.read_parquet(result.output)
    monkeypatch.chdir(folder)
    expected = model.predict(rows)
    task = next(iter(model.tasks))
    assert frame["id"].dropna().tolist() == [*range(12), 13]
    assert frame[task].tolist()[:12] == [next(iter(one["outputs"][task].values())) for one in expected]
    assert [list(used) for used in frame["inputs_used"][:12]] == [one["inputs_used"] for one in expected]
    assert frame["error"].isna().tolist() == [True] * 12 + [False] * 2
    assert frame["error"][12].startswith(f"{data}:13: not JSON")


def test_csv_and_parquet_give_the_predictions_of_jsonl(
    model: Model, folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = []
    for source in (folder / "train.csv", folder / "train.jsonl"):
        rayfuse.predict(model, source, tmp_path / "out.jsonl", keep=[])
        found.append((tmp_path / "out.jsonl").read_text())
    assert len(found[0].splitlines()) == len(rows)
    first, second = ([json.loads(line) for line in text.splitlines()] for text in found)
    assert [one["inputs_used"] for one in first] == [one["inputs_used"] for one in second]
    for task in model.tasks:
        assert [one[task] for one in first] == pytest.approx([one[task] for one in second])


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_prediction_resumes(
    model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, target = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    rayfuse.predict(model, data, whole)
    predicted: list[int] = []
    predict_data = type(model).predict_data

    def interrupt(self: Model, rows: list[Row], *args: Any) -> Any:
        if len(predicted) == 2:
            raise KeyboardInterrupt
        predicted.append(len(rows))
        return predict_data(self, rows, *args)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "predict_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rayfuse.predict(model, data, target)
    assert not target.exists()
    result = rayfuse.predict(model, data, target)
    assert (result.rows, result.resumed) == (14, sum(predicted))
    assert target.read_bytes() == whole.read_bytes()


def test_changed_data_are_predicted_again(
    model: Model, folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data, target = folder / "changed.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"id": 1}\n')
    for _ in range(2):  # also with the part of the first call
        with pytest.raises(DataError, match="all 1 rows are invalid"):
            rayfuse.predict(model, data, target)
    data.write_text(json.dumps(rows[0]) + "\n")
    result = rayfuse.predict(model, data, target)
    assert (result.rows, result.invalid, result.resumed) == (1, 0, 0)


def test_rows_without_the_inputs_are_found_before_ray_starts(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    data = folder / "others.jsonl"
    data.write_text('{"id": 1}\n' * 3)
    with pytest.raises(DataError, match="(?s)others.jsonl: all 3 rows are invalid:.*others.jsonl:1: "):
        rayfuse.predict(model, data, tmp_path / "out.jsonl", concurrency=2)


def test_too_many_invalid_rows_are_an_error_after_the_file_is_written(
    model: Model, data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"2 of 14 rows are invalid \(14\.3%\), above max_bad_rows of 1\.0%"):
        rayfuse.predict(model, data, target, max_bad_rows=0.01)
    assert len(target.read_text().splitlines()) == 14


def test_a_table_in_memory_is_predicted(
    model: Model, folder: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = rayfuse.predict(model, rows[:3], tmp_path / "out.csv")
    assert (result.rows, result.invalid) == (3, 0)


def test_an_unknown_column_is_found_before_any_prediction(model: Model, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="keep: idd: not a column of the data; did you mean id"):
        rayfuse.predict(model, data, tmp_path / "out.csv", keep=["idd"])
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_predicts_the_same_and_is_asked_again_while_overloaded(
    model: Model, folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx.request
    overloaded = [
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429, headers={"Retry-After": "0"}),
    ]

    def sometimes(method: str, *args: Any, **options: Any) -> httpx.Response:
        return overloaded.pop() if method == "POST" and overloaded else request(method, *args, **options)

    with serve_in_thread(Predictor(folder / "model"), "/kinds") as url:
        monkeypatch.setattr(httpx, "request", sometimes)
        result = rayfuse.predict(url, data, tmp_path / "remote.jsonl", concurrency=4)
    assert not overloaded
    assert (result.rows, result.invalid) == (14, 2)
    rayfuse.predict(model, data, tmp_path / "local.jsonl")
    remote, local = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("remote", "local")
    )
    for task in model.tasks:
        assert [one[task] for one in remote] == pytest.approx([one[task] for one in local])
    assert f"{data}:14: no input given" in remote[13]["error"]
