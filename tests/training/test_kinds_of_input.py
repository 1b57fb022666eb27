"""Every input type, from rows to a trained model and to requests."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinds_of_input import make_job, make_rows
from tiny_clips import make_clip
from tiny_jobs import write_rows
from variants import train_and_reload

from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError, InvalidInputError, MissingInputError, SpecError
from rayfuse.model.model_io import load_job
from rayfuse.spec.job import Job
from rayfuse.spec.load import load_spec

JUNK: list[Any] = [
    b"", b"\0" * 50, bytes(range(256)), b"RIFF\x10\0\0\0WAVEfmt ", b"\0\0\0\x18ftypmp42", b"PAR1PAR1", b"OggS" * 9,
    b"[1", b"{}", b"[[[[]]]]", "", "text", 0, -1.5, math.inf, True, [], {}, [[]], [None], [[None]], [[[1]]], {"x": 1},
    {"b64": "aa"}, ["a", 1], [{}], [{"id": {}, "time": []}], {"age": {}}, {None: 1}, object(), {1, 2}, ("a", b"b"),
    np.zeros((2, 3)), np.array([[1, None]], dtype=object), ["\ud800"], {"city": "\ud800"}, [10**500], b"\x1aE\xdf\xa3" * 9,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_dataset(make_job(folder))


@pytest.fixture(scope="module")
def preprocessor(loaded: tuple[Any, Any]) -> Preprocessor:
    return Preprocessor(loaded[0].inputs)


def test_every_input_type_trains(tmp_path: Path) -> None:
    _, batch = train_and_reload(tmp_path, make_job(tmp_path))
    assert batch.inputs["images"].index.shape == (16, 3)
    job = load_job(tmp_path / "model")[0]
    assert sorted(job.inputs["person"].category_vocabularies["city"]) == ["Bern", "Oslo", "Rome"]
    assert job.inputs["sensor"].center is not None
    assert job.inputs["history"].vocabulary


def test_fitted_values(loaded: tuple[Any, Any]) -> None:
    job, dataset = loaded
    person = job.inputs["person"]
    assert person.numeric_columns == ["age"]
    assert sorted(person.category_vocabularies["city"]) == ["Bern", "Oslo", "Rome"]
    assert sorted(job.inputs["history"].vocabulary) == ["0", "1", "2", "3"]
    assert any(line.startswith("person, train: column age is missing in ") for line in dataset.report)
    assert not any(dataset.invalid.values())


def test_unknown_values_of_other_rows_are_reported(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    other = [{**row, "city": "Paris", "history": ["x", 1]} for row in rows[:3]]
    validation = str(write_rows(tmp_path / "validation.jsonl", other))
    _, dataset = load_dataset(make_job(tmp_path, rows, **{"data.validation": validation}))
    assert "person, validation: column city: 3 of 3 values are unknown: 'Paris' (3)" in dataset.report
    assert "history, validation: 3 of 6 values are unknown: 'x' (3)" in dataset.report


def test_audio_track_of_a_video(folder: Path, preprocessor: Preprocessor) -> None:
    assert preprocessor.inputs["sound"].column == "clip"
    with_sound, without = (folder / name for name in ("dark.mp4", "bright.mp4"))
    source = {"text": "which?", "clip": with_sound.read_bytes()}
    assert list(preprocessor.from_values(source).features) == ["clip", "sound", "text"]
    assert list(preprocessor.from_values({**source, "clip": without.read_bytes()}).features) == [
        "clip",
        "text",
    ]
    other = preprocessor.from_values(
        {**source, "clip": without.read_bytes(), "sound": with_sound.read_bytes()}
    )
    assert list(other.features) == ["clip", "sound", "text"]
    required = {
        **preprocessor.inputs,
        "sound": preprocessor.inputs["sound"].model_copy(update={"optional": False}),
    }
    with pytest.raises(
        MissingInputError, match="sound: missing: the file has no audio track, and this input is required"
    ):
        Preprocessor(required).from_values({**source, "clip": without.read_bytes()})


def test_audio_tracks_of_several_videos(tmp_path: Path) -> None:
    job = make_job(tmp_path, **{"inputs.clip.max_items": 2, "inputs.sound.max_items": 2})
    preprocessor = Preprocessor({name: job.inputs[name] for name in ("clip", "sound")})
    clips = [make_clip((50,), pitch=300.0), make_clip((60,))]
    sample = preprocessor.from_values({"clip": clips})
    assert {name: len(items) for name, items in sample.features.items()} == {"clip": 2, "sound": 1}
    batch = collate(
        [sample, preprocessor.from_values({"clip": [clips[1], None, clips[0]]})], preprocessor.modalities
    )
    assert batch.inputs["clip"].index.tolist() == [[0, 1], [1, 0]]
    assert batch.inputs["sound"].index.tolist() == [[0], [0]]
    with pytest.raises(
        InvalidInputError,
        match=r"clip: 3 values are above the maximum of 2; give fewer, or raise inputs.clip.max_items",
    ):
        preprocessor.from_values({"clip": clips + clips[:1]})


def test_rows_and_requests_give_equal_features(folder: Path, preprocessor: Preprocessor) -> None:
    for number, row in enumerate(make_rows(folder)):
        made = preprocessor.from_row(Row(row, str(folder / "rows.jsonl"), number))
        files = {"images": [(folder / name).read_bytes() for name in row["images"]]}
        if row["clip"]:
            files["clip"] = (folder / row["clip"]).read_bytes()
        person = {"city": row["city"], "age": row["age"]}
        source = preprocessor.from_values(
            {**{k: row[k] for k in ("sensor", "history", "text")}, **files, "person": person}
        )
        assert made.features.keys() == source.features.keys()
        for name, items in made.features.items():
            for mine, theirs in zip(items, source.features[name], strict=True):
                for key, array in mine.items():
                    np.testing.assert_array_equal(array, theirs[key])


def test_arrays_in_data_frames(preprocessor: Preprocessor) -> None:
    sensor = np.empty(2, dtype=object)
    sensor[:] = [np.array([1.0, np.nan]), np.array([2.0, 3.0])]
    found = preprocessor.from_values(
        {"text": "a", "sensor": sensor, "person": {"age": np.float64(3)}, "history": np.array([1, 2])}
    )
    same = preprocessor.from_values(
        {"text": "a", "sensor": [[1.0, math.nan], [2.0, 3.0]], "person": {"age": 3}, "history": [1, 2]}
    )
    assert found.keys["history"] == same.keys["history"]
    np.testing.assert_array_equal(found.features["sensor"][0]["values"], same.features["sensor"][0]["values"])


@pytest.mark.parametrize("name", ["clip", "sound", "sensor", "person", "history", "images", "text"])
def test_values_give_finite_features_or_an_error(preprocessor: Preprocessor, name: str) -> None:
    clip = make_clip((50, 60), pitch=300.0)
    rng = np.random.default_rng(0)
    broken = [clip[:end] for end in range(0, len(clip), len(clip) // 12)]
    for _ in range(12):
        damaged = np.frombuffer(clip, dtype=np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 20)] = rng.integers(0, 256, 20)
        broken.append(damaged.tobytes())
    for value in [*JUNK, *broken, *(rng.bytes(200) for _ in range(5))]:
        try:
            values = {"text": "which?", name: [value] if name == "images" else value}
            features = preprocessor.from_values(values).features
        except InvalidInputError:
            continue
        arrays = [array for item in features.get(name, ()) for array in item.values()]
        assert all(np.isfinite(array).all() for array in arrays), value


def test_csv_cells(tmp_path: Path) -> None:
    lines = ["age,city,history,sensor,text,label"]
    lines += [f'{20 + i},0{i % 2},"[{i % 3}, 1]","[[1,2],[3,{i}]]",[hm],{"ab"[i % 2]}' for i in range(30)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    kept = {
        name: make_job(tmp_path).model_dump()["inputs"][name]
        for name in ("person", "history", "sensor", "text")
    }
    job, dataset = load_dataset(
        make_job(tmp_path, inputs=kept, **{"data.train": str(tmp_path / "train.csv")})
    )
    assert sorted(job.inputs["person"].category_vocabularies["city"]) == ["00", "01"]
    assert job.inputs["person"].numeric_columns == ["age"]
    assert len(job.inputs["history"].vocabulary) == 3
    assert dataset.splits["train"][0].values["text"] == "[hm]"
    again, _ = load_dataset(job)  # kinds are known now, and cells read accordingly
    assert again == job


@pytest.mark.parametrize("optional", [True, False])
def test_missing_column(tmp_path: Path, optional: bool) -> None:
    columns = {"inputs.person.columns": ["age", "citi"], "inputs.person.optional": optional}
    with pytest.raises(DataError, match=r"no column `citi` \(inputs.person.columns\); did you mean city\?"):
        load_dataset(make_job(tmp_path, **columns))


def test_tabular_input_in_one_column(tmp_path: Path) -> None:
    rows = [{**row, "who": {"age": row["age"], "city": row["city"]}} for row in make_rows(tmp_path)]
    job, dataset = load_dataset(make_job(tmp_path, rows, **{"inputs.person.column": "who"}))
    assert job.inputs["person"].numeric_columns == ["age"]
    assert "person" in Preprocessor(job.inputs).from_row(dataset.splits["train"][0]).features
    with pytest.raises(DataError, match="inputs.person: column `citi`: no training row has a value"):
        load_dataset(
            make_job(tmp_path, rows, **{"inputs.person.column": "who", "inputs.person.columns": ["citi"]})
        )


def test_timeseries_with_other_channels_is_rejected(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    rows[3]["sensor"] = [[1.0]] * 3
    with pytest.raises(DataError, match=r"sensor: 3 channels, but this input has 2 \(x, y\)") as found:
        load_dataset(make_job(tmp_path, rows))
    assert "train.jsonl:4" in str(found.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"inputs.sound.audio_of": "clop"}, "inputs.sound.audio_of: no video input `clop`; one of: clip"),
        ({"inputs.sound.features": "waveform"}, "inputs.sound.features: waveform is not supported by the conv encoder; use mel"),
        ({"inputs.clip.max_items": 3}, "inputs.sound.max_items: 1 is not 3, which `clip` has; use 3"),
        ({"inputs.person.max_items": 3}, "inputs.person.max_items: 3 needs a `column` with a list of mappings"),
        ({"inputs.person.columns": ["age", "age"]}, "inputs.person.columns: `age` is listed twice"),
        ({"inputs.person.columns": {"age": "numbr"}}, "inputs.person.columns.age: unknown type `numbr`; did you mean number?"),
        ({"inputs.person.columns": []}, "inputs.person.columns"),
        ({"inputs.sensor.channels": []}, "inputs.sensor.channels: [] is empty; list a channel"),
        ({"inputs.sensor.channels": ["x", "x"]}, "inputs.sensor.channels: ['x', 'x'] has a duplicate; list each channel once"),
        ({"inputs.sensor.center": [1.0]}, "inputs.sensor.center: 1 numbers for 2 channels; write one per channel"),
        ({"inputs.person.columns": ["age", "label"]}, "tasks: column `label` is both an input and a target"),
        ({"inputs.history.encoder": None}, "inputs.history.encoder"),
    ],
)  # fmt: skip
def test_invalid_specs_are_rejected(tmp_path: Path, overrides: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as found:
        make_job(tmp_path, [{}], **overrides)
    assert problem in str(found.value)


def test_two_inputs_with_one_column_name(tmp_path: Path) -> None:
    make_job(tmp_path, [{}])
    path = tmp_path / "job.yaml"
    path.write_text(path.read_text().replace('"inputs": {', '"inputs": {"text": {}, '))
    with pytest.raises(SpecError, match="key `text` is given twice"):
        load_spec(path, Job)


def test_lengths_equal_padded_sizes(loaded: tuple[Any, Any], preprocessor: Preprocessor) -> None:
    masks = {"text": "attention_mask", "clip": "frame_mask", "sensor": "step_mask", "history": "item_mask"}
    for row in loaded[1].splits["train"][:8]:
        features = preprocessor.from_row(row).features
        sizes = [len(item[mask]) for name, mask in masks.items() for item in features.get(name, ())]
        assert preprocessor.fingerprint(row, with_length=True).length == sum(sizes)
