"""Generation tasks with a JSON schema: every decoded reply follows it, wherever the model is used."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import random_language_models
import tiny_generation
import tiny_jobs
import tiny_language_models
import torch
from starlette.testclient import TestClient

from rayfuse.data.dataset import load_dataset
from rayfuse.errors import SpecError
from rayfuse.evaluation.evaluate import evaluate_folder
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import save_model
from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine, warm_up
from rayfuse.serving.settings import Settings
from rayfuse.spec.service import GenerationLimits
from rayfuse.training.context_check import check_context_lengths

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "level": {"type": "integer", "minimum": 10}},
    "required": ["on", "level"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schema")
    tiny_generation.make_rows(folder)
    for name in ("train", "test"):
        path = folder / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        replies = [{"on": number % 2 == 0, "level": 10 + number} for number in range(len(rows))]
        tiny_jobs.write_rows(path, [{**row, "label": one} for row, one in zip(rows, replies, strict=True)])
    return folder


def schema_job(folder: Path, family: str = "smollm", **task: Any) -> Any:
    options = {"json_schema": SCHEMA, "max_tokens": 32, "metrics": ["exact", "slot_f1", "valid_json"], **task}
    return tiny_generation.generation_job(folder, family, options)


@pytest.fixture(scope="module")
def model_folder(folder: Path) -> Path:
    """Return a saved model with random weights, whose schema was in a file that is gone."""
    file = folder / "reply.schema.json"
    file.write_text(json.dumps(SCHEMA))
    tiny_language_models.randomize(tiny_language_models.qwen(folder / "qwen"))
    job, _ = load_dataset(schema_job(folder, "qwen", json_schema=str(file)))
    file.unlink()
    torch.manual_seed(0)
    model = FusedModel(job)
    save_model(folder / "model", job, trainable_state_dict(model), {})
    return folder / "model"


def follows(text: str) -> bool:
    """Return True if a text follows the schema. Raises jsonschema.ValidationError if it does not."""
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


def test_all_replies_of_an_evaluation_follow_the_schema(folder: Path, model_folder: Path) -> None:
    found = evaluate_folder(model_folder, str(folder / "data" / "test.jsonl"), batch_size=4)
    assert found["metrics"]["answer/valid_json"] == 1
    for names in ("image", "text"):
        assert found["by_inputs"][names]["answer/valid_json"] == 1
    texts = {reply["text"] for reply in found["details"]["answer"]["replies"]}
    assert all(map(follows, texts))
    assert len(texts) > 1


def test_replies_are_free_without_it(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    """The model has random weights: without the schema it writes no JSON."""
    content = json.loads((model_folder / "rayfuse.json").read_text())["job"]
    assert content["tasks"]["answer"]["json_schema"] == SCHEMA
    predictor = Predictor(model_folder)
    [prediction] = predictor.predict([{"text": "which?"}])
    assert follows(prediction["outputs"]["answer"]["text"])
    job = predictor.job.override(**{"tasks.answer.json_schema": None})
    save_model(tmp_path / "free", job, trainable_state_dict(predictor.model), {})
    [prediction] = Predictor(tmp_path / "free").predict([{"text": "which?"}])
    with pytest.raises(json.JSONDecodeError):
        json.loads(prediction["outputs"]["answer"]["text"])


def test_endpoints_follow_the_schema(model_folder: Path) -> None:
    predictor = Predictor(model_folder)
    warm_up(predictor)
    settings = Settings(model="tiny", version=1, batch_wait_timeout=0.0)
    engine = InferenceEngine(predictor, settings, generation=GenerationLimits(max_model_len=200))
    [expected] = predictor.predict([{"text": "which?"}])
    text = expected["outputs"]["answer"]["text"]
    own = {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "additionalProperties": False,
    }
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        response = client.post("/predict", json={"inputs": {"text": "which?"}})
        assert response.json()["outputs"] == {"answer": {"text": text}}

        def chat(**options: Any) -> Any:
            messages = [{"role": "user", "content": "which?"}]
            return client.post(
                "/v1/chat/completions", json={"model": "tiny", "messages": messages, **options}
            )

        [choice] = chat().json()["choices"]
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == "stop"
        form = {"type": "json_schema", "json_schema": {"name": "own", "schema": own}}
        [choice] = chat(response_format=form).json()["choices"]
        assert choice["message"]["content"] == '{"a": 1}'
        response = chat(max_tokens=5)
        assert response.status_code == 400
        assert "5 tokens are too few" in response.json()["error"]["message"]
    engine.texts.close()


def test_layers_without_slots_are_rejected_before_the_first_step(folder: Path) -> None:
    (folder / "mamba").mkdir()
    vocabulary = tiny_language_models.write_tokenizer(folder / "mamba")
    random_language_models.mamba().save_pretrained(folder / "mamba")
    assert vocabulary <= random_language_models.VOCAB
    job, _ = load_dataset(schema_job(folder, "mamba", train="frozen"))
    model = FusedModel(job)
    with pytest.raises(SpecError, match=r"tasks\.answer: json_schema: .*mamba cannot restrict its replies"):
        check_context_lengths(job, model)
