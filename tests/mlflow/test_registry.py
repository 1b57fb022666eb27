"""From a trained folder to a champion that another process answers with, through a real MLflow server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import make_model_folder, make_rows, tiny_job

from rayfuse.cli import main
from rayfuse.model.folder import read_job
from rayfuse.registry.evaluate import evaluate_folder
from rayfuse.registry.fetching import download, fetch, folder_digest
from rayfuse.registry.storing import register
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.tracking import connect

SERVING_ONLY = """
import json, sys
for name in ("deepspeed", "ray", "sklearn", "matplotlib", "datasets", "optuna", "psutil", "sqlalchemy", "alembic",
             "flask", "docker", "rayfuse.train", "rayfuse.tune"):
    sys.modules[name] = None  # as if it were not installed
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
image = open(sys.argv[2], "rb").read()
rows = pandas.DataFrame({"image": [image, None], "text": ["which colour is this?"] * 2})
print(json.dumps([model.predict(rows), model.predict(pandas.DataFrame({"text": ["which colour is it?"]}))]))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a good model in model/ and its rows in data/, and one whose model is untrained."""
    good, poor = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("poor")
    make_model_folder(good)
    make_model_folder(poor, steps=0, job=tiny_job(good / "data"))
    return good, poor


def log_and_register(uri: str, folder: Path, digest: str, model: str) -> int:
    """What `rayfuse train` does after training; the model is judged on its own test rows."""
    client, job = connect(uri), read_job(folder / "model")[0].model_copy(update={"name": model})
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
    )
    tracker.finish()
    return number


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON answer of `rayfuse …`."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_process_with_the_serving_extra_alone_answers(
    server: Any, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    good, _ = trained
    log_and_register(server.uri, good, "d", "answering")
    done = subprocess.run(
        [sys.executable, "-c", SERVING_ONLY, "models:/answering@candidate", str(good / "data" / "test0.png")],
        env={**os.environ, "MLFLOW_TRACKING_URI": server.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (with_image, without), (text_only,) = json.loads(done.stdout)
    assert with_image["inputs_used"] == ["image", "text"]
    assert with_image["outputs"]["answer"]["label"] == "red"
    assert without["inputs_used"] == text_only["inputs_used"] == ["text"]
    assert without["outputs"]["answer"]["label"] == "unknown"


def test_what_comes_back_over_the_network_is_what_was_registered(
    server: Any, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    good, _ = trained
    number = log_and_register(server.uri, good, "d", "travelling")
    cache = tmp_path / "cache"
    found = fetch("models:/travelling@candidate", server.uri, cache)
    assert (found.name, found.version) == ("travelling", number)
    assert folder_digest(found.folder) == folder_digest(good / "model")
    (found.folder / "marker").touch()
    assert download(connect(server.uri), f"models:/travelling/{number}", cache) == found.folder
    assert (found.folder / "marker").exists(), "it was downloaded twice"
    assert [path.name for path in cache.iterdir()] == [found.folder.name]
    stored = [path for path in (server.folder / "artifacts").rglob("*") if path.is_file()]
    assert not [path for path in stored if path.suffix in (".pkl", ".pickle", ".pt", ".bin", ".pth")]


def test_the_life_of_a_model_on_the_command_line(
    server: Any,
    trained: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, poor = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(good / "cache"))
    log_and_register(server.uri, poor, "d", "living")
    code, answer = command(capsys, "models", "promote", "living", "--min", "answer/accuracy=0.9")
    assert (code, answer["error"]["type"]) == (3, "GateRefused")
    assert "is below 0.9" in answer["error"]["message"]
    code, answer = command(capsys, "models", "promote", "living", "--min", "answer/accuracy=0.9", "--force")
    assert (code, answer["decision"], answer["version"]) == (0, "forced", 1)

    log_and_register(server.uri, good, "d", "living")
    code, answer = command(capsys, "models", "promote", "living", "--min", "answer/accuracy=0.9")
    assert (code, answer["decision"], answer["champion_before"]) == (0, "promoted", 1)
    _, answer = command(capsys, "models", "show", "living")
    assert answer["aliases"] == {"champion": 2, "previous": 1}
    assert (
        answer["versions"][0]["decision"]["gates"][1]["numbers"]["champion_measured"]
        == "recorded on the same rows"
    )

    code, answer = command(capsys, "models", "rollback", "living")
    assert (code, answer["version"]) == (0, 1)
    _, answer = command(capsys, "models", "list")
    listed = next(model for model in answer["models"] if model["name"] == "living")
    assert listed["aliases"] == {"champion": 1, "previous": 2}
    assert command(capsys, "models", "rollback", "living")[1]["version"] == 2


def test_a_champion_that_saw_other_rows_is_measured_on_the_candidates(
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
    code, answer = command(capsys, "models", "promote", "measured")
    assert code == 3
    assert "measured now on the candidate's rows" in answer["error"]["message"]


def test_evaluate_answers_for_every_subset_of_the_inputs(
    server: Any, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, _ = trained
    rows = make_rows(tmp_path, 20, "fresh", seed=3)
    code, answer = command(capsys, "evaluate", str(good / "model"), "--data", str(rows))
    assert code == 0
    assert list(answer) == ["metrics", "by_inputs", "rows", "bad"]
    assert list(answer["by_inputs"]) == ["image+text", "image", "text"]
    assert (answer["rows"], answer["bad"]) == (20, 0)
    assert main(["evaluate", str(good / "model"), "--data", str(rows)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "20 rows"
    assert shown[1].split() == ["inputs", "loss", "answer/loss", "answer/accuracy", "answer/ece"]


def test_errors_of_the_command_line_name_the_remedy(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code, answer = command(capsys, "models", "list")
    assert code == 4
    assert "train a job first" in answer["error"]["message"]
    code, answer = command(capsys, "models", "show", "nothing", "--tracking", server.uri)
    assert code == 2
    assert "no registered model `nothing`" in answer["error"]["message"]
    assert command(capsys, "models", "list", "--tracking", "http://127.0.0.1:9")[0] == 4


def test_a_new_database_is_made_without_a_word(tmp_path: Path) -> None:
    script = f"from rayfuse.registry.tracking import connect; connect('sqlite:///{tmp_path}/new.db')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
