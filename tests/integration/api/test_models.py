"""Models from folders and endpoints, and every form of rows."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from endpoints import serve_in_thread
from PIL import Image
from tiny_jobs import make_model_folder, tiny_job

from rayfuse.api.models import Model, load_model
from rayfuse.cli import main
from rayfuse.data.ingest import read_job_rows
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError, InvalidInputError, MissingInputError, SpecError, UnavailableError
from rayfuse.model.predictor import Predictor


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the folder of the rows, to which their paths are relative."""
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[Model]:
    with serve_in_thread(Predictor(folder / "model"), "/kinds", version=3) as url:
        yield load_model(url)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of an image, a text and a clip."""
    folder = tmp_path_factory.mktemp("tiny")
    return make_model_folder(folder, steps=5, job=tiny_job(folder / "data", audio=True))


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Model:
    return load_model(tiny_folder)


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a value per input, as over HTTP."""
    values = {
        "sensor": row["readings"],
        "person": {"age": row["age"], "city": row["city"]},
        "history": row["purchases"],
        "images": [Path(name).read_bytes() for name in row["photos"]],
        "text": row["note"],
    }
    return values if row["film"] is None else {**values, "clip": Path(row["film"]).read_bytes()}


def scores(predictions: list[dict[str, Any]]) -> list[tuple[list[str], dict[str, float]]]:
    return [(one["inputs_used"], one["outputs"]["answer"]["scores"]) for one in predictions]


def as_trained(model: Model, url: str) -> list[dict[str, Any]]:
    """Predict the rows of a file by the preprocessing of training and evaluation."""
    job = model.job
    found, invalid = read_job_rows(url, job)
    assert not len(invalid)
    preprocessor = Preprocessor(job.inputs, job.tasks)
    predictor = Predictor(Path("model"))
    return [
        prediction for row in found for prediction in predictor.predict_samples([preprocessor.from_row(row)])
    ]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for (used, one), (expected_used, other) in zip(scores(found), scores(expected), strict=True):
        assert used == expected_used
        assert one == pytest.approx(other, abs=1e-5)


def test_columns_and_values_result_in_the_predictions_of_training(
    model: Model, rows: list[dict[str, Any]]
) -> None:
    trained = as_trained(model, "train.jsonl")
    assert {tuple(one["inputs_used"]) for one in trained} > {tuple(model.inputs)}
    assert_same(model.predict(rows), trained)
    assert_same(model.predict([values_of(row) for row in rows]), trained)
    assert_same([model.predict(rows[1])], trained[1:2])


def test_a_csv_of_pandas_results_in_the_predictions_of_training(model: Model) -> None:
    frame = pd.read_csv("train.csv").set_index(pd.RangeIndex(100, 112))
    found = model.predict(frame)
    assert list(found.columns) == ["answer/label", "answer/scores", "inputs_used"]
    assert list(found.index) == list(frame.index)
    trained = as_trained(model, "train.csv")
    assert list(found["inputs_used"]) == [one["inputs_used"] for one in trained]
    assert list(found["answer/label"]) == [one["outputs"]["answer"]["label"] for one in trained]
    for one, (_, expected) in zip(found["answer/scores"], scores(trained), strict=True):
        assert one == pytest.approx(expected, abs=1e-5)


def test_an_endpoint_predicts_the_same(remote: Model, model: Model, rows: list[dict[str, Any]]) -> None:
    local = model.predict(rows)
    assert_same(remote.predict(rows), local)
    assert_same(remote.predict([values_of(row) for row in rows]), local)
    [single] = rows[:1]
    assert remote.predict(single)["model"] == {"name": "kinds", "version": 3}
    frame = pd.read_csv("train.csv")
    assert list(remote.predict(frame)["answer/label"]) == list(model.predict(frame)["answer/label"])
    assert (remote.inputs, remote.tasks) == (model.inputs, model.tasks)
    with pytest.raises(SpecError, match="does not publish its job"):
        _ = remote.job


def test_the_client_of_an_endpoint_needs_the_core_only(folder: Path) -> None:
    code = """if True:
        import json, sys
        for name in ("numpy", "pandas", "torch", "ray", "mlflow", "transformers", "PIL", "rayfuse.modalities"):
            sys.modules[name] = None  # as if it were not installed
        import rayfuse
        model = rayfuse.load_model(sys.argv[1])
        print(json.dumps(model.predict([{"note": "a", "film": "dark.mp4", "age": 3}, {"text": "b"}])))
    """
    with serve_in_thread(Predictor(folder / "model"), "/kinds") as url:
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, check=False, cwd=folder
        )
    assert done.returncode == 0, done.stderr
    assert [one["inputs_used"] for one in json.loads(done.stdout)] == [
        ["clip", "sound", "person", "text"],
        ["text"],
    ]


def test_the_command_line_takes_columns(
    model: Model, remote: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model.predict({"age": 30.0, "city": "Rome", "text": "a", "clip": "dark.mp4"})
    for uri in ("model", remote.url):  # type: ignore[attr-defined]
        assert main(["predict", uri, "age=30", "city=Rome", "note=a", "film=@dark.mp4", "--json"]) == 0
        assert_same([json.loads(capsys.readouterr().out.splitlines()[-1])], [expected])
    assert main(["predict", "model", "agee=30", "--json"]) == 2
    message = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["message"]
    assert message == "agee: not an input of this model; did you mean age?"


def test_predictions_name_the_model(model: Model, folder: Path) -> None:
    assert model.predict({"text": "a"})["model"] == {"name": "kinds", "version": None}
    assert load_model(str(folder / "model")).predict({"text": "a"})["inputs_used"] == ["text"]
    assert repr(model).splitlines() == [
        "FolderModel: kinds",
        "  inputs: clip (video, optional), sound (audio, optional), sensor (timeseries, optional), "
        "person (tabular, optional), history (item_sequence, optional), images (image, optional), text (text)",
        "  tasks: answer (classification)",
    ]


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_missing_values_are_absent_inputs(model: Model, missing: Any) -> None:
    row = {"note": "a", "age": missing, "city": missing, "film": missing, "readings": missing}
    expected = model.predict({"text": "a"})
    assert model.predict(row) == expected
    assert model.predict({"text": "a", "person": {"age": missing, "city": missing}}) == expected
    frame = pd.DataFrame([row, {**row, "city": "Rome"}])
    assert list(model.predict(frame)["inputs_used"]) == [["text"], ["person", "text"]]


def test_other_columns_are_ignored_with_a_debug_line(
    model: Model, rows: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="rayfuse"):
        model.predict(rows[:1])
    assert "columns that the model does not read: label" in caplog.text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"text": "a", "person": {"age": 3}, "age": 3},
            "person: given both as `person` and as `age`; give one of them",
        ),
        ({"text": "a", "note": "b"}, "text: given both as `text` and as `note`; give one of them"),
        ({"age": "old", "note": "a"}, "person: column age: expected a number, got 'old'"),
        ({"film": "nope.mp4", "note": "a"}, "clip: nope.mp4: no such file"),
        ({"photos": "red.png", "note": "a"}, "images: expected a list of up to 3 values, not str"),
        ({"age": 3}, "text: missing, and this input is required"),
        ({"images": [{"b64": "*"}], "note": "a"}, "images: b64: not base64"),
    ],
)
def test_errors_name_the_row_and_the_input(
    model: Model, remote: Model, row: dict[str, Any], expected: str
) -> None:
    for one in (model, remote):
        with pytest.raises(InvalidInputError) as caught:
            one.predict(row)
        assert str(caught.value).startswith(expected)
        with pytest.raises(InvalidInputError) as caught:
            one.predict([{"text": "a"}, row])
        assert str(caught.value).startswith(f"row 1: {expected}")
        assert caught.value.row == 1


@pytest.mark.parametrize("values", ["text", 3, [3], [{"text": "a"}, "b"]])
def test_other_values_are_rejected(model: Model, values: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected a "):
        model.predict(values)


def test_no_rows(model: Model) -> None:
    assert model.predict([]) == []
    found = model.predict(pd.DataFrame({"note": []}))
    assert list(found.columns) == ["answer/label", "answer/scores", "inputs_used"]


def test_a_frame_with_a_column_twice(model: Model) -> None:
    with pytest.raises(InvalidInputError, match="two columns `note`"):
        model.predict(pd.DataFrame([["a", "b"]], columns=["note", "note"]))


def test_numbers_in_a_text_column_of_a_frame_are_texts(model: Model) -> None:
    frame = pd.DataFrame({"note": [12, 7]})
    expected = model.predict([{"note": "12"}, {"note": "7"}])
    assert list(model.predict(frame)["answer/scores"]) == [
        one["outputs"]["answer"]["scores"] for one in expected
    ]


def test_images_in_every_form(tiny: Model, tiny_folder: Path) -> None:
    path = tiny_folder.parent / "data" / "test0.png"
    image = Image.open(path)
    expected = tiny.predict({"text": "a", "image": path.read_bytes()})
    assert expected["inputs_used"] == ["image", "text"]
    for form in (
        str(path),
        path,
        path.as_uri(),
        image,
        np.asarray(image),
        {"bytes": None, "path": str(path)},
    ):
        assert tiny.predict({"text": "a", "image": form}) == expected


def test_an_image_is_oriented_as_its_file(tiny: Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    path = {"text": "a", "image": tmp_path / "a.png"}
    opened = tiny.predict({"text": "a", "image": Image.open(tmp_path / "a.png")})
    assert opened == tiny.predict(path)
    assert opened != tiny.predict({"text": "a", "image": pixels})


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode(tiny: Model, mode: str) -> None:
    image = Image.new("L", (8, 8), 100).convert(mode)
    target = io.BytesIO()
    image.save(target, "TIFF")
    as_file = tiny.predict({"text": "a", "image": target.getvalue()})
    assert tiny.predict({"text": "a", "image": image}) == as_file


def test_audio_in_every_form(tiny: Model, tiny_folder: Path) -> None:
    path = tiny_folder.parent / "data" / "test0.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    expected = tiny.predict({"text": "a", "audio": path.read_bytes()})
    assert expected["inputs_used"] == ["text", "audio"]
    for form in (str(path), (samples, rate), {"array": samples, "sampling_rate": rate}):
        found = tiny.predict({"text": "a", "audio": form})
        assert found["outputs"]["answer"]["scores"] == pytest.approx(
            expected["outputs"]["answer"]["scores"], abs=1e-5
        )


def test_time_series_in_every_form(model: Model) -> None:
    lists = [[0.5, None, 2.0], [1.0, 2.0, 3.0]]
    expected = model.predict({"text": "a", "sensor": lists})
    array = np.array(lists, dtype=float)
    frame = pd.DataFrame(array.T, columns=["x", "y"])
    for form in (array, frame, "[[0.5, null, 2.0], [1.0, 2.0, 3.0]]"):
        assert model.predict({"text": "a", "sensor": form}) == expected


def test_explanations(model: Model, remote: Model, tiny: Model) -> None:
    row = {"text": "which colour is this?", "image": np.zeros((8, 8, 3), dtype=np.uint8)}
    explained = tiny.explain(row)
    assert set(explained) == {"outputs", "inputs_used", "explain", "model"}
    assert set(explained["explain"]["tasks"]["answer"]["contributions"]) == {"image", "text"}
    assert tiny.explain([row, row]) == [explained, explained]
    assert tiny.explain(pd.DataFrame([row])) == [explained]
    [over_http, _] = remote.explain([{"note": "a", "age": 30}, {"text": "b"}])
    contributions = model.explain({"note": "a", "age": 30})["explain"]["tasks"]["answer"]["contributions"]
    assert over_http["explain"]["tasks"]["answer"]["contributions"] == pytest.approx(contributions, abs=1e-3)


def test_models_that_cannot_be_loaded(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="not a model folder"):
        load_model(tmp_path)
    with pytest.raises(UnavailableError, match="is unreachable"):
        load_model("http://127.0.0.1:9/model")
    with pytest.raises(SpecError, match=r"models:/kinds@champion: not a folder.*rayfuse\.load_model"):
        Predictor("models:/kinds@champion")
    with pytest.raises(SpecError, match="an endpoint runs on its own devices"):
        load_model("http://127.0.0.1:9/model", device="cpu")
    assert Predictor(str(folder / "model")).job.name == "kinds"


def test_api_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfuse.serving.settings import hash_api_key

    with serve_in_thread(Predictor(folder / "model"), "/kinds", keys=(hash_api_key("secret"),)) as url:
        monkeypatch.delenv("RAYFUSE_API_KEY", raising=False)
        with pytest.raises(UnavailableError, match="an API key is required"):
            load_model(url).predict({"text": "a"})
        assert load_model(url, api_key="secret").predict({"text": "a"})["inputs_used"] == ["text"]
        monkeypatch.setenv("RAYFUSE_API_KEY", "secret")
        assert load_model(url).predict({"text": "a"})["inputs_used"] == ["text"]


def test_a_required_input_that_is_missing_has_its_own_error(model: Model) -> None:
    with pytest.raises(MissingInputError):
        model.predict({"age": 3})
