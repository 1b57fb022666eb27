"""One job with a custom part of every family (`tests/toy_parts`), from its spec to promotion."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_jobs
import yaml
from endpoints import running_endpoint
from starlette.testclient import TestClient
from toy_parts.alignment import LowRankAlignment
from toy_parts.encoder import MotifEncoder
from toy_parts.fusion import MeanFusion
from toy_parts.modality import DNA
from toy_parts.task import QuantileHead
from variants import train_and_reload

from rayfuse.api.serving import curl_command
from rayfuse.cli import main
from rayfuse.data.dataset import load_dataset
from rayfuse.data.ingest import read_job_rows
from rayfuse.data.samples import Preprocessor
from rayfuse.estimate.planner import Planner, PlanRequest
from rayfuse.evaluation.attribution_plots import explain_rows
from rayfuse.model.model_io import load_job
from rayfuse.model.predictor import Predictor
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.registration import register
from rayfuse.registry.tracker import Tracker
from rayfuse.registry.versions import aliases
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.settings import Settings
from rayfuse.spec.family import load_families
from rayfuse.spec.job import Job
from rayfuse.training.schedule import lr_factor

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
[SPEC] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
PARTS = {
    "modality:DNA": ("max_bases", "alphabet"),
    "encoder:MotifEncoder": ("motifs", "length"),
    "augmentation:Mutate": ("rate",),
    "alignment:LowRankAlignment": ("rank",),
    "alignment_loss:VarianceLoss": ("scale",),
    "fusion:MeanFusion": ("dropout",),
    "task:QuantileHead": ("quantile",),
    "optimizer:RMSprop": ("alpha",),
    "schedule:Polynomial": ("power",),
    "gate:Robustness": ("max_drop",),
}
"""Import path below `toy_parts` → fields of its `Options`."""


def toy_job(folder: Path) -> Job:
    """Write rows, and return a job with the blocks of docs/extending.md."""
    for name, count in (("train", 16), ("test", 8)):
        rows = [
            {
                "gene": "GATTACA"[i % 4 :] if i % 5 else None,
                "text": f"sample {i}",
                "label": ["coding", "noise"][i % 2],
                "length": float(7 - i % 4),
            }
            for i in range(count)
        ]
        tiny_jobs.write_rows(folder / f"{name}.jsonl", rows)
    overrides = {
        **{key: SPEC[key] for key in ("inputs", "align", "fusion", "tasks")},
        **{f"train.{key}": block for key, block in SPEC["train"].items()},
        "train.batch_size": 8,
        "train.epochs": 1,
        "train.early_stopping.metric": "length/coverage_error",
    }
    found: Job = tiny_jobs.tiny_job(folder, **overrides)
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return toy_job(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def model_folder(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jobs.make_model_folder(tmp_path_factory.mktemp("model"), steps=3, job=job)


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor(model_folder)


@pytest.fixture
def client(predictor: Predictor) -> Iterator[TestClient]:
    engine = InferenceEngine(predictor, Settings(version=3, batch_wait_timeout=0.0))
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as found:
        yield found


def test_they_train_and_a_saved_model_has_the_same_outputs(job: Job, tmp_path: Path) -> None:
    model, batch = train_and_reload(tmp_path, job)
    assert isinstance(model.encoders["gene"], MotifEncoder)
    assert isinstance(model.alignment["gene"], LowRankAlignment)
    assert isinstance(model.fusion, MeanFusion)
    assert isinstance(model.tasks["length"], QuantileHead)
    losses = model.train().losses(model(batch), batch).to_metrics()
    assert set(losses) == {"answer", "length", "align/toy_parts.alignment_loss:VarianceLoss"}


def test_the_modality_is_fitted_on_the_training_rows(job: Job) -> None:
    fitted, _ = load_dataset(job)
    modality = Preprocessor(fitted.inputs, fitted.tasks).modalities["gene"]
    assert isinstance(modality, DNA)
    assert modality.options.alphabet == "ACGT"
    assert fitted.model_dump()["inputs"]["gene"]["options"] == {"max_bases": 6, "alphabet": "ACGT"}
    assert json.loads(fitted.model_dump_json())["fusion"]["options"] == {"dropout": 0.1}


def test_the_schedule_follows_the_warm_up(job: Job) -> None:
    factors = [lr_factor(job.train.schedule, step, 5) for step in range(5)]
    assert factors == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])


def _train(rank: int, world: int, job_json: str, folder: Path) -> None:
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
    (folder / "run").mkdir(exist_ok=True)
    trainer = build_trainer(job, dataset.splits, load_deepspeed_config(job), run=str(folder / "run"))
    summary = trainer.run(print)
    optimizer = trainer.engine.optimizer
    found = {"summary": summary, "alpha": optimizer.param_groups[0]["alpha"]}
    (folder / "found.json").write_text(json.dumps(found, default=str))


def test_the_trainer_takes_steps_with_the_optimizer_and_reports_the_metrics(job: Job, tmp_path: Path) -> None:
    ranks.spawn(_train, 1, job.model_dump_json(), tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["alpha"] == 0.9
    assert found["summary"]["steps"] == 2
    assert {"length/coverage_error", "length/loss", "answer/accuracy"} <= found["summary"]["metrics"].keys()
    assert set(found["summary"]["by_inputs"]) == {"gene+text", "gene", "text"}


def test_a_plan_needs_no_rows(job: Job) -> None:
    planner = Planner.from_job(job, PlanRequest(rows=1000, memory=4_000_000_000))
    assert "gene: the bases ACGT" in "\n".join(planner.notes)
    found = planner.plan()
    assert found.time is not None
    assert found.time.flops > 0
    assert found.current.phase.total > 0


def test_the_openapi_document_describes_them(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["Inputs"]["properties"]["gene"] == {
        "type": ["string", "null"],
        "pattern": "^[ACGT]+$",
        "description": "a DNA sequence, of which the first 6 bases are read (optional)",
    }
    assert schemas["Inputs"]["required"] == ["text"]
    assert schemas["Response"]["properties"]["outputs"]["properties"]["length"] == {
        "type": "object",
        "properties": {"value": {"type": "number", "title": "the 0.9 quantile"}},
    }
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]["one"]["value"] == {"inputs": {"gene": "GATTACA", "text": "What is this?"}}


def test_the_endpoint_predicts(client: TestClient, predictor: Predictor) -> None:
    values = {"gene": "GATTACA", "text": "sample"}
    [expected] = predictor.predict([values])
    found = client.post("/predict", json={"inputs": values}).json()
    assert found["inputs_used"] == ["gene", "text"]
    value = found["outputs"]["length"]["value"]
    assert value == pytest.approx(expected["outputs"]["length"]["value"], abs=1e-5)
    form = {name: (None, text) for name, text in values.items()}
    assert client.post("/predict", files=form).json()["outputs"]["length"]["value"] == pytest.approx(value)
    without = client.post("/predict", json={"inputs": {"text": "sample"}}).json()
    assert without["outputs"]["length"]["value"] != value


def test_an_invalid_value_is_a_problem_of_its_input(client: TestClient) -> None:
    response = client.post("/predict", json={"inputs": {"gene": "GAX", "text": "sample"}})
    assert response.status_code == 422
    assert response.json()["input"] == "gene"
    assert "'X' is not a base; use ACGT" in response.json()["detail"]


def test_the_curl_command_sends_an_example(predictor: Predictor) -> None:
    parts = shlex.split(curl_command(running_endpoint("toys"), predictor.job))
    assert parts == ["curl", "-F", "gene=GATTACA", "-F", "text=…", "http://host/toys/predict"]


def test_predictions_are_explained(client: TestClient, predictor: Predictor) -> None:
    body = {"inputs": {"gene": "GATTA", "text": "sample"}, "explain": True}
    explained = client.post("/predict", json=body).json()["explain"]
    found = explained["tasks"]["length"]
    assert found["score"] == "quantile"
    assert sum(found["contributions"].values()) == pytest.approx(
        found["value"] - found["base_value"], abs=1e-3
    )
    assert len(found["saliency"]["gene"]) == 5
    assert explained["attention"] == {"gene": pytest.approx(0.5), "text": pytest.approx(0.5)}
    rows, _ = read_job_rows(predictor.job.data.train, predictor.job)
    [row] = explain_rows(predictor, rows[1:2], 1)
    assert row.explanation.saliency_maps["gene"].axis_label == "position"


def test_the_page_has_the_base_class_and_a_file_of_every_family() -> None:
    for families in load_families().values():
        assert f"`{families[0].custom.base_class}`" in PAGE
    for part in PARTS:
        assert f"(../tests/toy_parts/{part.partition(':')[0]}.py)" in PAGE


@pytest.mark.parametrize("part", PARTS)
def test_schema_prints_the_options(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", f"toy_parts.{part}"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["type"]["const"] == f"toy_parts.{part}"
    options = next(iter(schema["$defs"][name] for name in schema["$defs"] if name.endswith("Options")))
    assert tuple(options["properties"]) == PARTS[part]
    assert all(field["description"] for field in options["properties"].values())


def test_gates_decide_on_promotion(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(resolve_tracking_uri(str(tmp_path / "mlflow")))
    fitted, _ = load_job(model_folder)
    tracker = Tracker.start(client, fitted, "run", tmp_path / "metrics.jsonl")
    by_inputs = {"gene+text": {"length/coverage_error": 0.1}, "text": {"length/coverage_error": 0.3}}
    measured = {"metrics": by_inputs["gene+text"], "by_inputs": by_inputs, "split": "test"}
    register(client, tracker.run_id, fitted, model_folder, {}, measured, {"test": "digest"})
    tracker.finish()
    gate: dict[str, Any] = {"type": "toy_parts.gate:Robustness"}
    command = ["models", "promote", fitted.name, "--tracking-uri", str(tmp_path / "mlflow")]
    command += ["--min", "length/coverage_error=0.2", "--gate"]
    assert main([*command, json.dumps(gate)]) == 3
    text = capsys.readouterr().err
    assert "passed metric_threshold: length/coverage_error 0.1000 (bound 0.2)" in text
    assert "failed robustness: length/coverage_error drops by 0.20" in text
    assert aliases(client, fitted.name) == {"candidate": 1}
    gate["options"] = {"max_drop": 0.25}
    assert main([*command, json.dumps(gate)]) == 0
    assert aliases(client, fitted.name) == {"champion": 1}
