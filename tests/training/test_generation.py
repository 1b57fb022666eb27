"""Generation tasks in training: every part of a language model that is trained, ZeRO stages, and saved models."""

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny_generation
import tiny_jobs
import torch
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient
from variants import train_and_reload

from rayfuse.data.dataset import load_dataset
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import with_assumed_statistics
from rayfuse.evaluation.evaluate import evaluate_folder
from rayfuse.model.evaluation import collect_outputs, compute_metrics
from rayfuse.model.fused import FusedModel, task_heads, trainable_parameters, trainable_state_dict
from rayfuse.model.model_io import save_model
from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openapi import build_openapi
from rayfuse.serving.settings import Settings
from rayfuse.spec.load import validate_spec
from rayfuse.training.activation_checkpointing import checkpoint_activations

STAGES = (0, 3)
"""ZeRO stages that differ with one worker."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    tiny_generation.make_rows(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "train"),
    [
        *[("smollm", train) for train in ("frozen", "lora", "ia3", "oft", "last:1", "full")],
        *[("gpt2", train) for train in ("lora", "ia3", "full")],
        *[("t5", train) for train in ("frozen", "lora", "ia3", "oft", "last:1", "full")],
        *[("bart", train) for train in ("lora", "full")],
    ],
)
def test_what_is_trained_is_saved_by_name(family: str, train: str, folder: Path, tmp_path: Path) -> None:
    """A projector or adapters that are lost on saving leave an untrained model (LLaVA#474)."""
    task = {"train": train, "oft": {"oft_block_size": 4}}
    if family == "gpt2" and train == "ia3":
        task["ia3"] = {"target_modules": ["c_attn", "c_proj"], "feedforward_modules": ["c_proj"]}
    model, _ = train_and_reload(tmp_path, tiny_generation.generation_job(folder, family, task))
    names = trainable_state_dict(model)
    assert {"tasks.answer.projector.weight", "tasks.answer.projector.bias"} <= names.keys()
    expected = {
        "lora": "lora_A",
        "ia3": "ia3_",
        "oft": "oft_",
        "last:1": ".1.",
        "full": {"smollm": "embed", "gpt2": "wte"}.get(family, "shared"),
    }
    inside = [name for name in names if name.startswith("tasks.answer.lm.")]
    assert any(expected[train] in name for name in inside) if train != "frozen" else not inside
    assert (tmp_path / "model" / "tasks" / "answer" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("family", "train"),
    [("smollm", "frozen"), ("llama", "last:1"), ("qwen", "oft"), ("gemma", "lora"), ("gpt2", "full")],
)
def test_gated_layers_are_saved_by_name(family: str, train: str, folder: Path, tmp_path: Path) -> None:
    task = {**tiny_generation.CROSS_ATTENTION, "train": train, "oft": {"oft_block_size": 4}}
    model, _ = train_and_reload(tmp_path, tiny_generation.generation_job(folder, family, task))
    names = trainable_state_dict(model)
    gates = [f"tasks.answer.cross_attention.layers.{number}.attention_gate" for number in (0, 1)]
    assert {*gates, "tasks.answer.cross_attention.tokens.input_embeddings"} <= names.keys()
    assert all(names[gate].abs() > 0 for gate in gates)
    assert not any("projector" in name for name in names)
    assert any(name.startswith("tasks.answer.lm.") for name in names) == (train != "frozen")


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("frozen", "lora"), ("lora", "frozen"), ("last:1", "last:1"), ("full", "full")]
)
def test_trained_speech_models_are_saved_by_name(encoder: str, decoder: str, tmp_path: Path) -> None:
    tiny_generation.make_speech_rows(tmp_path)
    job = tiny_generation.speech_job(tmp_path, {"train": decoder}, train=encoder)
    model, _ = train_and_reload(tmp_path, job)
    names = trainable_state_dict(model)
    assert any(name.startswith("encoders.audio.") for name in names) == (encoder != "frozen")
    assert any(name.startswith("tasks.answer.lm.") for name in names) == (decoder != "frozen")


def test_predictions_match_the_response_schema(folder: Path) -> None:
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder))
    document = build_openapi(job, {"name": "model"}, root="", requires_api_key=False)
    outputs = document["components"]["schemas"]["Response"]["properties"]["outputs"]
    schema = Draft202012Validator(outputs["properties"]["answer"])
    model = FusedModel(job).eval()
    with torch.no_grad():
        generated = model(batch, generate=True).tasks["answer"]
    for prediction in task_heads(model)["answer"].format_predictions(generated):
        schema.validate(prediction)


@pytest.mark.parametrize(
    ("family", "task"), [("smollm", {}), ("t5", {}), ("smollm", tiny_generation.CROSS_ATTENTION)]
)
def test_an_endpoint_and_an_evaluation_give_the_texts_of_the_model(
    family: str, task: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    job, dataset = load_dataset(tiny_generation.generation_job(folder, family, task))
    torch.manual_seed(0)
    model = FusedModel(job)
    if task:
        tiny_generation.open_gates(model)
    save_model(tmp_path / "model", job, trainable_state_dict(model), {})
    predictor = Predictor(tmp_path / "model")
    rows = dataset.splits["test"]
    expected = predictor.predict_rows([row.values for row in rows], rows[0].folder)
    texts = [prediction["outputs"]["answer"]["text"] for prediction in expected]
    found = evaluate_folder(
        tmp_path / "model", job.data.test, batch_size=4, output=str(tmp_path / "out.jsonl")
    )
    assert [reply["text"] for reply in found["details"]["answer"]["replies"]] == texts
    assert "answer/exact" in found["by_inputs"]["image"]
    recorded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in recorded] == texts
    assert [row["answer_target"] for row in recorded] == [row.values["label"] for row in rows]
    number, row = next(
        (n, row) for n, row in enumerate(rows) if "text" in row.values and "image" not in row.values
    )
    engine = InferenceEngine(predictor, Settings(version=1, batch_wait_timeout=0.0))
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        response = client.post("/predict", json={"inputs": {"text": row.values["text"]}})
        assert response.json()["outputs"] == {"answer": {"text": texts[number]}}


@pytest.mark.parametrize("family", ["smollm", "t5"])
def test_a_plan_simulates_the_longest_prompts_and_replies(family: str, folder: Path) -> None:
    steps = []
    for max_tokens in (12, 100):
        job = tiny_generation.generation_job(folder, family, {"max_tokens": max_tokens, "train": "full"})
        fitted, _ = with_assumed_statistics(job)
        steps.append(Simulation(fitted, "fp32").simulate_step(4))
    assert steps[1].flops > 2 * steps[0].flops > 0
    assert steps[1].peak_total.total > steps[0].peak_total.total


def test_a_plan_counts_gated_layers(folder: Path) -> None:
    simulations, trained = [], []
    for heads in (2, 64):
        inject = {**tiny_generation.CROSS_ATTENTION["inject"], "heads": heads}
        task = {**tiny_generation.CROSS_ATTENTION, "inject": inject, "train": "frozen"}
        fitted, _ = with_assumed_statistics(tiny_generation.generation_job(folder, task=task))
        simulations.append(Simulation(fitted, "fp32"))
        trained.append(sum(part.num_trainable for part in simulations[-1].sizes().modules))
    few, many = simulations
    added = 2 * (64 - 2) * 8 * 4 * 16  # of query, key, value and output in two layers
    assert trained[1] - trained[0] == added
    assert many.simulate_optimizer(None).state - few.simulate_optimizer(None).state >= 2 * 4 * added
    assert (
        many.simulate_step(4).peak_activations.activations > few.simulate_step(4).peak_activations.activations
    )


def test_a_plan_simulates_the_decoder_of_a_speech_model(tmp_path: Path) -> None:
    tiny_generation.make_speech_rows(tmp_path)
    steps = []
    for max_tokens in (12, 60):
        job = tiny_generation.speech_job(tmp_path, {"max_tokens": max_tokens, "train": "full"}, train="full")
        fitted, _ = with_assumed_statistics(job)
        steps.append(Simulation(fitted, "fp32").simulate_step(4))
    assert steps[1].flops > 1.2 * steps[0].flops > 0


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *[(family, {}) for family in ("smollm", "gpt2", "t5", "bart")],
        *[(family, tiny_generation.CROSS_ATTENTION) for family in ("smollm", "gpt2")],
        ("smollm", {**tiny_generation.CROSS_ATTENTION, "train": "frozen"}),
    ],
)
def test_activation_checkpointing_gives_the_same_gradients(
    family: str, task: dict[str, Any], folder: Path
) -> None:
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder, family, task))
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = FusedModel(job).train()
        if task:
            tiny_generation.open_gates(model)
        if checkpointed:
            checkpoint_activations(model)
            frozen = task_heads(model)["answer"].lm.options.frozen
            assert task_heads(model)["answer"].lm.transformer.is_gradient_checkpointing != frozen
        torch.manual_seed(1)
        model.total_loss(model.losses(model(batch), batch), batch).backward()
        gradients.append({name: p.grad for name, p in trainable_parameters(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["smollm", "t5"])
def test_a_model_that_learned_its_replies_ends_them(family: str, folder: Path) -> None:
    """Training on the end token, which is also the padding token, ends replies (trl#1623)."""
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder, family, {"train": "full"}))
    torch.manual_seed(0)
    model = FusedModel(job).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(140):
        optimizer.zero_grad()
        model.total_loss(model.losses(model(batch), batch), batch).div(batch.batch_size).backward()
        optimizer.step()
    both = [("image", "text")]
    [outputs] = collect_outputs(model.eval(), task_heads(model), [batch], both, both)
    found = compute_metrics(task_heads(model), job, outputs)
    assert found["answer/exact"] > 0.8
    assert found["answer/perplexity"] < 1.1


def _run(rank: int, world: int, jobs: dict[str, str], folder: Path) -> None:
    """Train each job, save and load the model, and write its summary, its weights and predictions."""
    from safetensors.torch import save_file

    from rayfuse.data.dataset import load_dataset
    from rayfuse.model.fused import trainable_state_dict
    from rayfuse.model.model_io import save_model
    from rayfuse.model.predictor import Predictor
    from rayfuse.spec.job import Job
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.state import copy_to_cpu, gather_model

    for name, job_json in jobs.items():
        job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
        (folder / name / "run").mkdir(parents=True)
        trainer = build_trainer(
            job, dataset.splits, load_deepspeed_config(job), run=str(folder / name / "run")
        )
        summary = trainer.run(lambda line: None)
        weights = copy_to_cpu(gather_model(trainer.engine))
        save_file(
            {key: tensor.contiguous() for key, tensor in weights.items()},
            folder / name / "weights.safetensors",
        )
        save_model(folder / name / "model", job, weights, {})
        predictor = Predictor(folder / name / "model")
        assert set(trainable_state_dict(predictor.model)) == set(weights)
        rows = dataset.splits["test"]
        found = predictor.predict_rows([row.values for row in rows], rows[0].folder)
        (folder / name / "found.json").write_text(
            json.dumps({"summary": summary, "predictions": found}, default=str)
        )


def test_zero_stages_train_evaluate_and_predict_the_same(folder: Path, tmp_path: Path) -> None:
    """And so do two gradient accumulation steps (transformers#46731): the loss is a mean over the reply tokens of all."""
    from safetensors.torch import load_file

    tiny_jobs.roughen(folder / "data")
    options = {
        "train.epochs": 1,
        "train.batch_size": 6,
        "train.optimizer": {"type": "sgd", "lr": 0.1},
        "inputs.image.encoder.dropout": 0.0,
    }
    task = {"metrics": ["exact", "bleu"], "references": "photo"}
    jobs = {
        f"stage {stage}": tiny_generation.generation_job(
            folder, task=task, **options, **{"train.deepspeed.stage": stage}
        ).model_dump_json()
        for stage in STAGES
    }
    jobs["accumulated"] = tiny_generation.generation_job(
        folder, task=task, **options, **{"train.gradient_accumulation_steps": 2}
    ).model_dump_json()
    ranks.spawn(_run, 1, jobs, tmp_path)
    found = {name: json.loads((tmp_path / name / "found.json").read_text()) for name in jobs}
    weights = {name: load_file(tmp_path / name / "weights.safetensors") for name in jobs}
    first: Any = found["stage 0"]
    metrics = first["summary"]["metrics"]
    assert {"answer/perplexity", "answer/token_accuracy", "answer/exact", "answer/bleu"} <= metrics.keys()
    assert set(first["summary"]["by_inputs"]) == {"image+text", "image", "text"}
    assert "answer/bleu" in first["summary"]["by_inputs"]["text"]
    assert "answer/exact" in first["summary"]["history"][0]
    replies = [reply["text"] for reply in first["summary"]["details"]["answer"]["replies"]]
    assert replies == [prediction["outputs"]["answer"]["text"] for prediction in first["predictions"]]
    for name in jobs:
        assert found[name]["predictions"] == first["predictions"]
        assert found[name]["summary"]["metrics"] == pytest.approx(metrics, rel=1e-4)
        for key, tensor in weights["stage 0"].items():
            torch.testing.assert_close(weights[name][key], tensor, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
