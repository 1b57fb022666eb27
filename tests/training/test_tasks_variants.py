"""Every task with every option: training, reloading, and predictions that match the response schema."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import tiny_jobs
import torch
from jsonschema import Draft202012Validator
from torch import nn
from variants import assert_reload_equal, train_and_reload, train_steps

from rayfuse.data.collate import Batch, EncoderBatch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.model.encoders import Encoder
from rayfuse.model.evaluation import collect_outputs, compute_metrics, details, nonempty_subsets
from rayfuse.model.fused import FusedModel, task_heads
from rayfuse.model.outputs import LossOutput
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.serving.openapi import build_openapi
from rayfuse.spec.base import SpecModel
from rayfuse.spec.tasks import TASKS

PAIR = {"inputs": ["image", "text"], "dim": 8}

VARIANTS: dict[str, dict[str, Any]] = {
    "classification": {"type": "classification", "column": "label"},
    "classification, rare and hard ones first": {
        "type": "classification",
        "column": "label",
        "class_weights": "balanced",
        "focal_gamma": 2.0,
        "label_smoothing": 0.1,
    },
    "classification, given weights": {
        "type": "classification",
        "column": "label",
        "class_weights": {"red": 2.0},
        "weight": "learned",
    },
    "multi_label": {"type": "multi_label", "column": "labels"},
    "multi_label, rare and hard ones first": {
        "type": "multi_label",
        "column": "labels",
        "class_weights": "balanced",
        "focal_gamma": 2.0,
        "label_smoothing": 0.1,
    },
    "ordinal": {"type": "ordinal", "column": "grade"},
    "ordinal of two": {
        "type": "ordinal",
        "column": "sunny",
        "class_weights": "balanced",
        "label_smoothing": 0.1,
    },
    "regression": {"type": "regression", "column": "brightness"},
    "matching": {"type": "matching", **PAIR},
    "matching, labelled": {"type": "matching", **PAIR, "column": "sunny", "projection": "linear"},
    "retrieval": {"type": "retrieval", **PAIR},
    "retrieval, without hubs": {"type": "retrieval", **PAIR, "csls_bank": 8},
    "retrieval, several positives": {
        "type": "retrieval",
        **PAIR,
        "column": "label",
        "hard_negative_beta": 0.5,
    },
    "retrieval, hardest negative": {
        "type": "retrieval",
        **PAIR,
        "loss": "max_violation",
        "projection": "linear",
    },
    "ranking": {"type": "ranking", "column": "grade", "query_column": "query"},
    "ranking, pairwise": {"type": "ranking", "column": "grade", "query_column": "query", "loss": "pairwise"},
    "custom": {
        "type": f"{__name__}:Median",
        "column": "brightness",
        "options": {"scale": 100.0},
        "metrics": {"error": "min"},
    },
}


class Median(TaskHead):
    """Regression by absolute error."""

    class Options(SpecModel):
        scale: float = 1.0

    def __init__(self, options: Options, dim: int) -> None:
        super().__init__(options, dim)
        self.scale = options.scale
        self.linear = nn.Linear(dim, 1)

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"]) * self.scale

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs() / self.scale

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        return [{"value": value} for value in outputs[:, 0].tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {"error": float(np.abs(outputs[:, 0] - targets).mean())}


class Each(Encoder):
    """Encoder with a vector per token."""

    width = 4

    def __init__(self, options: dict[str, Any], source: object) -> None:
        super().__init__(options, source)
        self.embedding = nn.Embedding(8, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        return self.embedding(input_ids), attention_mask.bool()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows with targets of every task."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, n in (("train", 32), ("test", 16)):
        path = tiny_jobs.make_rows(folder, n, name)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["labels"] = [row["label"], *(["even"] if i % 2 else [])]
            row |= {"grade": i % 3, "sunny": i % 2, "query": f"query {i // 6}"}
        tiny_jobs.write_rows(path, rows)
    return folder


def response_schema(job: Any, task: str) -> Draft202012Validator:
    """Return the schema of a task's predictions in an endpoint's OpenAPI document."""
    document = build_openapi(job, {"name": "model"}, root="", requires_api_key=False)
    outputs = document["components"]["schemas"]["Response"]["properties"]["outputs"]
    return Draft202012Validator(outputs["properties"][task])


def test_every_task_has_a_variant() -> None:
    assert {block["type"] for block in VARIANTS.values()} == {*TASKS, f"{__name__}:Median"} - {
        "tagging",
        "generation",
        "preference",
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_every_task_trains_and_reloads(name: str, folder: Path, tmp_path: Path) -> None:
    model, batch = train_and_reload(tmp_path, job_of(folder, name))
    heads = task_heads(model)
    job, _ = load_dataset(job_of(folder, name))
    for part in collect_outputs(model, heads, [batch], nonempty_subsets(list(job.inputs))):
        found = compute_metrics(heads, job, part)
        assert set(found) == set(job.metric_modes())
        assert all(isinstance(value, float) and np.isfinite(value) for value in found.values()), found
        json.dumps(details(heads, part), allow_nan=False)
    schema = response_schema(job, "answer")
    with torch.no_grad():
        for given in (batch, batch.select_inputs(["text"])):
            for prediction in heads["answer"].format_predictions(model(given).tasks["answer"]):
                schema.validate(json.loads(json.dumps(prediction, allow_nan=False)))


def test_retrieval_maps_images_to_embeddings_of_a_frozen_text_encoder(folder: Path, tmp_path: Path) -> None:
    text = {
        "type": "text",
        "max_tokens": 16,
        "encoder": {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert"))},
        "align": {"type": "identity", "dim": 16},
    }
    task = {"type": "retrieval", **PAIR, "dim": 16, "projection": "none", "loss": "cosine"}
    overrides = {"inputs.text": text, "tasks": {"answer": task}, "train.early_stopping": None}
    model, batch = train_and_reload(tmp_path, tiny_jobs.tiny_job(folder, **overrides))
    with torch.no_grad():
        encoded = model.encode(batch)["text"]
        assert encoded is not None
        found = model.apply_heads(model.fuse(model.encode(batch), batch))["answer"][:, 1, :-1]
    vectors = torch.nn.functional.normalize(encoded[0][batch.inputs["text"].index[:, 0], 0], dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=1), vectors)


def job_of(folder: Path, name: str) -> Any:
    overrides = {"tasks": {"answer": VARIANTS[name]}, "train.early_stopping": None}
    return tiny_jobs.tiny_job(folder, **overrides)


def test_filler_rows_have_zero_loss_and_reach_every_parameter(folder: Path) -> None:
    """Includes losses over several rows."""
    tasks = {f"t{i}": {**block, "weight": 1} for i, block in enumerate(VARIANTS.values())}
    job, dataset = load_dataset(tiny_jobs.tiny_job(folder, tasks=tasks, **{"train.early_stopping": None}))
    model = FusedModel(job).train()
    preprocessor = Preprocessor(job.inputs, job.tasks)
    filler = collate([], preprocessor.modalities, add_dummies=True)
    losses = model.losses(model(filler), filler)
    assert {float(loss.detach()) for loss in losses.tasks.values()} == {0.0}
    model.total_loss(losses, filler).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or p.grad.any()]
    alone = collate(
        [preprocessor.from_row(dataset.splits["train"][0])], preprocessor.modalities, add_dummies=True
    )
    model.total_loss(model.losses(model(alone), alone), alone).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_learned_weights_follow_the_losses(folder: Path) -> None:
    """The weight of a task is exp(-s), where s converges to the log of its loss (Kendall et al., 2018)."""
    tasks = {
        "label": {"type": "classification", "weight": "learned"},
        "brightness": {"type": "regression", "weight": "learned"},
    }
    job, dataset = load_dataset(tiny_jobs.tiny_job(folder, tasks=tasks, **{"train.early_stopping": None}))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    batch = collate(
        [preprocessor.from_row(row) for row in dataset.splits["train"][:8]], preprocessor.modalities
    )
    model = FusedModel(job).eval()
    losses = LossOutput({"label": torch.tensor(2.0 * 8), "brightness": torch.tensor(0.5 * 8)})
    optimizer = torch.optim.Adam(model.log_variances.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        model.total_loss(losses, batch).backward()
        optimizer.step()
    found = {name: float(value.detach()) for name, value in model.log_variances.items()}
    assert found == pytest.approx({"label": np.log(2), "brightness": np.log(0.5)}, abs=0.01)


def test_tagging_trains_and_reloads(folder: Path, tmp_path: Path) -> None:
    """Words of a text input are given by the index of their first token."""
    text = {
        "type": "text",
        "max_tokens": 16,
        "encoder": {"type": f"{__name__}:Each"},
    }
    tasks = {"tags": {"type": "tagging", "input": "text", "entities": ["thing"], "class_weights": {"O": 0.5}}}
    job = tiny_jobs.tiny_job(
        folder, **{"inputs": {"text": text}, "tasks": tasks, "train.early_stopping": None}
    )
    ids = torch.tensor([[2, 4, 5, 7, 3], [2, 4, 6, 3, 0]])
    features = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "word_starts": torch.tensor([[1, 2, 3], [1, -1, -1]]),
    }
    targets = torch.tensor([[0, 1, 2], [1, 0, torch.nan]])
    batch = Batch(
        {"text": EncoderBatch(features, torch.tensor([[0], [1]]))}, {"tags": targets}, torch.ones(2)
    )
    torch.manual_seed(0)
    model = FusedModel(job).train()
    train_steps(model, job, batch)
    assert_reload_equal(tmp_path, job, model.eval(), batch)
    with torch.no_grad():
        outputs = model(batch).tasks["tags"]
        predictions = model.tasks["tags"].format_predictions(outputs)  # type: ignore[operator]
        [absent] = model.tasks["tags"].format_predictions(model(Batch(  # type: ignore[operator]
            {"text": EncoderBatch(None, torch.tensor([[-1]]))}, {}, torch.ones(1))).tasks["tags"])  # fmt: skip
    assert [len(prediction["tags"]) for prediction in predictions] == [3, 1]
    assert absent == {"tags": [], "entities": []}
    schema = response_schema(job, "tags")
    for prediction in predictions:
        schema.validate(prediction)
