from pathlib import Path
from typing import Any

import pytest

from rayfuse.model.model_io import load_job
from rayfuse.registry.download import download, folder_digest
from rayfuse.registry.mlflow_connection import artifact_root
from rayfuse.registry.model_card import TrainedModel
from rayfuse.registry.registration import pip_requirements, register, save_pyfunc
from rayfuse.registry.versions import aliases, get_version

EVALUATION = {
    "split": "test",
    "metrics": {"loss": 0.1, "answer/accuracy": 0.9},
    "by_inputs": {"image+text": {"loss": 0.1, "answer/accuracy": 0.9}},
}


@pytest.fixture
def job(tiny: Path) -> Any:
    return load_job(tiny / "model")[0]


def new_run(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment(name, artifact_root(client.tracking_uri, name))
    )
    return str(client.create_run(experiment).info.run_id)


def test_the_stored_files_are_text_and_safetensors(tiny: Path, job: Any, tmp_path: Path) -> None:
    saved = save_pyfunc(tmp_path, job, tiny / "model")
    files = sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file())
    assert files == [
        "MLmodel",
        "artifacts/model/rayfuse.json",
        "artifacts/model/weights.safetensors",
        "conda.yaml",
        "input_example.json",
        "model_code.py",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ]
    description = (saved / "MLmodel").read_text()
    assert str(tiny) not in description
    assert str(Path(__file__).parents[3]) not in description, "a path of this machine"


def test_requirements_are_the_installed_serving_extra() -> None:
    names = {line.partition("==")[0] for line in pip_requirements()}
    assert {"rayfuse", "torch", "transformers", "peft", "mlflow-skinny", "safetensors", "soundfile"} <= names
    assert not names & {"deepspeed", "mlflow", "scikit-learn", "matplotlib"}
    assert all("==" in line and "+" not in line for line in pip_requirements())


def test_long_metrics_by_inputs_are_registered(client: Any, tiny: Path, job: Any) -> None:
    run = new_run(client, "long")
    by_inputs = {"+".join(f"question{i}" for i in range(n)): {"loss": n / 10} for n in range(60, 0, -1)}
    job = job.model_copy(update={"name": "long"})
    number = register(client, run, job, tiny / "model", {}, {**EVALUATION, "by_inputs": by_inputs})
    assert get_version(client, "long", number).by_inputs == by_inputs


def test_a_registered_folder_is_downloaded_unchanged(client: Any, tiny: Path, job: Any) -> None:
    run = new_run(client, "stored")
    job = job.model_copy(update={"name": "stored"})
    digests = {"train": "t", "test": "d"}
    number = register(client, run, job, tiny / "model", {"validation": {"loss": 0.2}}, EVALUATION, digests)
    assert (number, aliases(client, "stored")) == (1, {"candidate": 1})
    version = get_version(client, "stored", 1)
    assert version.metrics == {"validation": {"loss": 0.2}, "test": EVALUATION["metrics"]}
    assert (version.evaluation_digest, version.selection_metric, version.required_inputs) == (
        "d",
        "answer/accuracy",
        ("text",),
    )
    assert version.run_id == run
    folder = download(client, "models:/stored@candidate")
    assert folder_digest(folder) == folder_digest(tiny / "model") == version.folder_digest
    assert client.get_run(run).data.metrics["test/answer/accuracy"] == 0.9


def test_versions_and_their_runs_are_described_and_have_short_tags(client: Any, tiny: Path, job: Any) -> None:
    run = new_run(client, "described")
    job = job.model_copy(update={"name": "described"})
    evaluation = {**EVALUATION, "metrics": {"loss": 0.1, "answer/f1/50 € (net)": 0.9}}
    card = TrainedModel(job, {"train": 1200}, "test", EVALUATION["by_inputs"]).card
    number = register(client, run, job, tiny / "model", {}, evaluation, {"test": "d" * 32}, card)
    version = client.get_model_version("described", str(number))
    assert version.description == client.get_run(run).data.tags["mlflow.note.content"] == card(number)
    assert max(map(len, version.tags.values())) < 250
    assert get_version(client, "described", number).metrics["test"] == evaluation["metrics"]
    assert client.get_run(run).data.metrics["test/answer/f1/50 _ _net_"] == 0.9


def test_registering_the_same_folder_again_returns_the_same_version(
    client: Any, tiny: Path, job: Any
) -> None:
    job = job.model_copy(update={"name": "again"})
    run = new_run(client, "again")
    first = register(client, run, job, tiny / "model", {}, EVALUATION)
    client.delete_registered_model_alias("again", "candidate")
    assert register(client, run, job, tiny / "model", {}, EVALUATION) == first
    assert aliases(client, "again") == {"candidate": first}
    assert register(client, new_run(client, "again"), job, tiny / "model", {}, EVALUATION) == first + 1
