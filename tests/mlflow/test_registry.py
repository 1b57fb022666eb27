"""From a model folder to a champion that another process loads, through a real MLflow server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tiny_jobs import make_model_folder, make_rows, tiny_job

from rayfuse.cli import main
from rayfuse.evaluation.evaluate import evaluate_folder
from rayfuse.model.model_io import load_job
from rayfuse.registry.download import download, fetch, folder_digest
from rayfuse.registry.mlflow_connection import connect, default_tracking_uri
from rayfuse.registry.model_card import TrainedModel
from rayfuse.registry.promotion import promote
from rayfuse.registry.registration import register
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.versions import get_version

SERVING_ONLY = """
import json, sys
for name in ("deepspeed", "ray", "sklearn", "matplotlib", "datasets", "optuna", "psutil", "sqlalchemy", "alembic",
             "flask", "docker", "rayfuse.training", "rayfuse.tuning"):
    sys.modules[name] = None  # as if it were not installed
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
image = open(sys.argv[2], "rb").read()
rows = pandas.DataFrame({"image": [image, None], "text": ["which colour is this?"] * 2})
found = [model.predict(rows), model.predict(pandas.DataFrame({"text": ["which colour is it?"]}))]
print(json.dumps([frame.to_dict("records") for frame in found]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder with a trained model in model/ and its rows in data/, and one with an untrained model."""
    good, poor = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("poor")
    make_model_folder(good)
    make_model_folder(poor, steps=0, job=tiny_job(good / "data"))
    return good, poor


def log_and_register(uri: str, folder: Path, digest: str, model: str) -> int:
    """Register a model as `rayfuse train` does, with its metrics on the test rows."""
    client, job = connect(uri), load_job(folder / "model")[0].model_copy(update={"name": model})
    tracker = Tracker.start(client, job, "run", folder / "metrics.jsonl")
    evaluation = {**evaluate_folder(folder / "model", job.data.test), "split": "test"}
    number = register(
        client,
        tracker.run_id,
        job,
        folder / "model",
        {"validation": {"loss": 1.0}},
        evaluation,
        {"test": digest},
        TrainedModel(job, {"test": 24}, "test", evaluation["by_inputs"]).card,
    )
    tracker.finish()
    return number


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `rayfuse …`, and return its exit code and JSON."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_predict_with_the_serving_extra_only(server: Any, trained: tuple[Path, Path], tmp_path: Path) -> None:
    good, _ = trained
    log_and_register(server.uri, good, "d", "answering")
    done = subprocess.run(
        [sys.executable, "-c", SERVING_ONLY, "models:/answering@candidate", str(good / "data" / "test0.png")],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (with_image, without), (text_only,) = json.loads(done.stdout)
    assert with_image["inputs_used"] == ["image", "text"]
    assert with_image["answer/label"] == "red"
    assert without["inputs_used"] == text_only["inputs_used"] == ["text"]
    assert without["answer/label"] == "unknown"


def test_a_model_is_downloaded_unchanged_and_once(
    server: Any, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    good, _ = trained
    number = log_and_register(server.uri, good, "d", "downloaded")
    cache = tmp_path / "cache"
    found = fetch("models:/downloaded@candidate", server.uri, cache)
    assert (found.name, found.version) == ("downloaded", number)
    assert folder_digest(found.folder) == folder_digest(good / "model")
    (found.folder / "marker").touch()
    assert download(connect(server.uri), f"models:/downloaded/{number}", cache) == found.folder
    assert (found.folder / "marker").exists(), "downloaded twice"
    assert [path.name for path in cache.iterdir()] == [found.folder.name]
    stored = [path for path in (server.folder / "artifacts").rglob("*") if path.is_file()]
    assert not [path for path in stored if path.suffix in (".pkl", ".pickle", ".pt", ".bin", ".pth")]


def test_pages_of_a_server_have_descriptions_names_and_short_tags(
    server: Any, trained: tuple[Path, Path]
) -> None:
    good, _ = trained
    number = log_and_register(server.uri, good, "d", "described")
    client = connect(server.uri)
    promote(client, "described")
    version = client.get_model_version("described", str(number))
    assert f'rayfuse.load_model("models:/described/{number}")' in version.description
    assert max(map(len, version.tags.values())) < 250
    run = client.get_run(version.run_id)
    assert run.data.tags["mlflow.note.content"] == version.description
    assert max(len(value) for name, value in run.data.tags.items() if name != "mlflow.note.content") < 250
    found = get_version(client, "described", number)
    assert found.by_inputs.keys() == {"image+text", "image", "text"}
    assert (found.decision or {})["decision"] == "promoted"
    with default_tracking_uri(server.uri):
        info = mlflow.models.get_model_info(version.source)
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["image", "text"]


def test_promotion_and_rollback_on_the_command_line(
    server: Any,
    trained: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, poor = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(good / "cache"))
    log_and_register(server.uri, poor, "d", "lifecycle")
    code, data = command(capsys, "models", "promote", "lifecycle", "--min", "answer/accuracy=0.9")
    assert (code, data["error"]["type"]) == (3, "GateRejectedError")
    assert "is below 0.9" in data["error"]["message"]
    code, data = command(capsys, "models", "promote", "lifecycle", "--min", "answer/accuracy=0.9", "--force")
    assert (code, data["decision"], data["version"]) == (0, "forced", 1)

    log_and_register(server.uri, good, "d", "lifecycle")
    code, data = command(capsys, "models", "promote", "lifecycle", "--min", "answer/accuracy=0.9")
    assert (code, data["decision"], data["champion_before"]) == (0, "promoted", 1)
    _, data = command(capsys, "models", "show", "lifecycle")
    assert data["aliases"] == {"champion": 2, "previous": 1}
    assert (
        data["versions"][0]["decision"]["gates"][1]["details"]["champion_metrics_source"]
        == "recorded on the same rows"
    )

    code, data = command(capsys, "models", "rollback", "lifecycle")
    assert (code, data["version"]) == (0, 1)
    _, data = command(capsys, "models", "list")
    listed = next(model for model in data["models"] if model["name"] == "lifecycle")
    assert listed["aliases"] == {"champion": 1, "previous": 2}
    assert command(capsys, "models", "rollback", "lifecycle")[1]["version"] == 2


def test_a_champion_with_other_rows_is_evaluated_on_those_of_the_candidate(
    server: Any,
    trained: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, poor = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(good / "cache"))
    log_and_register(server.uri, good, "old rows", "measured")
    assert command(capsys, "models", "promote", "measured")[0] == 0
    log_and_register(server.uri, poor, "new rows", "measured")
    code, data = command(capsys, "models", "promote", "measured")
    assert code == 3
    assert "evaluated now on the candidate's rows" in data["error"]["message"]


def test_evaluate_reports_every_subset_of_the_inputs(
    server: Any, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, _ = trained
    rows = make_rows(tmp_path, 20, "fresh", seed=3)
    code, data = command(capsys, "evaluate", str(good / "model"), "--data", str(rows))
    assert code == 0
    assert list(data) == ["metrics", "by_inputs", "rows", "invalid"]
    assert list(data["by_inputs"]) == ["image+text", "image", "text"]
    assert (data["rows"], data["invalid"]) == (20, 0)
    assert main(["evaluate", str(good / "model"), "--data", str(rows)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "20 rows"
    assert shown[1].split() == ["inputs", "loss", "answer/loss", "answer/accuracy", "answer/ece"]


def test_command_line_errors_have_a_remedy(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code, data = command(capsys, "models", "list")
    assert code == 4
    assert "train a job first" in data["error"]["message"]
    code, data = command(capsys, "models", "show", "nothing", "--tracking-uri", server.uri)
    assert code == 2
    assert "registered model `nothing` not found" in data["error"]["message"]
    assert command(capsys, "models", "list", "--tracking-uri", "http://127.0.0.1:9")[0] == 4


def test_a_new_database_is_created_without_output(tmp_path: Path) -> None:
    script = f"from rayfuse.registry.mlflow_connection import connect; connect('sqlite:///{tmp_path}/new.db')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
