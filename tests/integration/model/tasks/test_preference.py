"""Preference heads: losses of pairs of replies, and the reference without adapters."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_jobs
import torch

from rayfuse.data.collate import Batch
from rayfuse.data.samples import Preprocessor
from rayfuse.data.targets import PairReader
from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.model.evaluation import collect_outputs, compute_metrics
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, task_heads, trainable_parameters

PAIRS = {"type": "preference", "rejected": "worse"}
BOTH = [("image", "text")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    tiny_generation.make_rows(folder)
    for name in ("train", "test"):
        path = folder / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["worse"] = "no" * (1 + number % 3)
        tiny_jobs.write_rows(path, rows)
    return folder


def build(folder: Path, **options: Any) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder, task=PAIRS | options))
    torch.manual_seed(0)
    return job, FusedModel(job).eval(), batch


def move_adapters(model: FusedModel) -> None:
    """Set the matrices that LoRA initializes to 0."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)


def replies_of(batch: Batch, row: int) -> list[torch.Tensor]:
    """Return the tokens of the better and the worse reply."""
    target = batch.targets["answer"][row]
    return [ids[ids >= 0].long() for ids in (target[0::2], target[1::2])]


def summed_losses(job: Any, model: FusedModel, batch: Batch, row: int) -> list[float]:
    """Return the cross entropy of both replies of a row, from the whole language model."""
    head: Any = task_heads(model)["answer"]
    _, alone = tiny_generation.load_batch(job, [row])
    fused = model.fuse(model.encode(alone), alone)
    embeddings, _ = head.reading.prompt_embeddings(fused)
    found = []
    for reply in replies_of(batch, row):
        whole = torch.cat([embeddings[0], head.lm.embed(reply)]).unsqueeze(0)
        logits = head.lm.transformer(inputs_embeds=whole).logits[0, embeddings.shape[1] - 1 : -1]
        found.append(float(torch.nn.functional.cross_entropy(logits, reply, reduction="sum")))
    return found


def test_the_loss_compares_log_ratios_to_the_reference(folder: Path) -> None:
    job, model, batch = build(folder, beta=0.3, sft_weight=0.5)
    move_adapters(model)
    head: Any = task_heads(model)["answer"]
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        losses = head.loss(outputs, batch.targets["answer"])
        for row in range(3):
            better, worse = summed_losses(job, model, batch, row)
            with head.lm.model.disable_adapter():
                reference_better, reference_worse = summed_losses(job, model, batch, row)
            assert (better, worse) != pytest.approx((reference_better, reference_worse), rel=1e-3)
            margin = 0.3 * ((reference_better - better) - (reference_worse - worse))
            mean = better / len(replies_of(batch, row)[0])
            assert float(losses[row]) == pytest.approx(math.log1p(math.exp(-margin)) + 0.5 * mean, rel=1e-4)


@torch.no_grad()
def test_the_reference_of_a_model_with_gated_layers_attends_to_nothing(folder: Path) -> None:
    _, model, batch = build(folder, **tiny_generation.CROSS_ATTENTION)
    head: Any = task_heads(model)["answer"]
    before = model(batch).tasks["answer"]
    torch.testing.assert_close(before[:, 0], before[:, 4])
    move_adapters(model)
    tiny_generation.open_gates(model)
    after = model(batch).tasks["answer"]
    torch.testing.assert_close(after[:, 4:], before[:, 4:])
    with head.cross_attention.switched_off():
        unattended = model(batch).tasks["answer"][:, 0]
    assert torch.equal(after[:, 0] != unattended, batch.inputs["image"].index[:, 0] >= 0)


def test_pairs_of_an_untrained_model_have_the_loss_of_a_coin(folder: Path) -> None:
    job, model, batch = build(folder)
    [outputs] = collect_outputs(model, task_heads(model), [batch], BOTH, [])
    found = compute_metrics(task_heads(model), job, outputs)
    assert found["answer/loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert found["answer/reward_margin"] == pytest.approx(0, abs=1e-5)
    assert set(found) == set(job.metric_modes())
    assert outputs.loss_weights["answer"] == len(batch.weights)


def test_training_prefers_the_better_replies(folder: Path) -> None:
    job, model, batch = build(folder)
    model.train()
    optimizer = torch.optim.Adam(list(trainable_parameters(model).values()), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        model.total_loss(model.losses(model(batch), batch), batch).div(batch.batch_size).backward()
        optimizer.step()
    [outputs] = collect_outputs(model.eval(), task_heads(model), [batch], BOTH, BOTH)
    found = compute_metrics(task_heads(model), job, outputs)
    assert found["answer/reward_accuracy"] > 0.9
    assert found["answer/reward_margin"] > 0.1
    assert len(outputs.replies["answer"].rows) == len(batch.weights)
    assert outputs.replies["answer"].rows[0].reference != "no"


def test_rows_without_an_input_reach_every_parameter(folder: Path) -> None:
    _, model, batch = build(folder)
    model.train()
    for chosen in (batch.select_inputs(["text"]), batch.select_inputs([])):
        model.zero_grad()
        model.total_loss(model.losses(model(chosen), chosen), chosen).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_reference_leaves_frozen_parameters_of_adapters_frozen(folder: Path) -> None:
    _, model, batch = build(folder, lora={"init_lora_weights": "mica"})
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not all(trained for name, trained in before.items() if "lora_B" in name)
    model.train()(batch)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert model.training


def test_replies_are_decoded_after_each_epoch_for_metrics_only(folder: Path) -> None:
    rows = [
        task_heads(build(folder, **options)[1])["answer"].decoded_rows
        for options in ({}, {"metrics": ["exact"]})
    ]
    assert rows == [0, 4]


def test_generated_replies_are_explained(folder: Path) -> None:
    job, model, batch = build(folder)
    found = explain(model, batch, Preprocessor(job.inputs, job.tasks).modalities)
    assert set(found.contributions) == {"answer"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": "good"}, "worse: the reply is missing"),
        ({"label": "good", "worse": " "}, "worse: the reply is empty"),
        ({"label": "good", "worse": " good"}, "worse: the reply equals label; remove the row"),
        ({"worse": "bad"}, "the reply is missing"),
        ({"label": "good", "worse": "bad " * 20}, "worse: the reply has .* above max_tokens 12"),
    ],
)
def test_invalid_pairs(values: dict[str, str], message: str, folder: Path) -> None:
    job = tiny_generation.generation_job(folder, task=PAIRS)
    reader = PairReader(job.tasks["answer"], job.inputs)
    with pytest.raises(InvalidInputError, match=message):
        reader.read(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rejected": "label"}, r"tasks\.answer\.rejected: .*name another column"),
        ({"train": "full"}, r"tasks\.answer\.train: full leaves no reference"),
        ({"lora": {"init_lora_weights": "pissa"}}, r"tasks\.answer\.lora\.init_lora_weights: pissa changes"),
        ({"lora": {"init_from": "adapter"}}, r"tasks\.answer\.lora\.init_from: .*--merged"),
        ({"beta": 0}, r"tasks\.answer\.beta: .*greater than 0"),
    ],
)
def test_invalid_tasks(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_generation.generation_job(folder, task=PAIRS | options)
