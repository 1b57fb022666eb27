"""Targets of generation tasks in the data: invalid replies, and the weights of rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_generation
import tiny_jobs

from rayfuse.data.dataset import load_dataset
from rayfuse.data.sampler import BatchSampler
from rayfuse.data.samples import Preprocessor
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.model.outputs import LossOutput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_generation.make_rows(tmp_path, 12, 4)
    return tmp_path


def test_replies_that_cannot_be_learned_are_invalid_rows(folder: Path) -> None:
    path = folder / "data" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["label"], rows[1]["label"], rows[2]["label"] = (
        "",
        "a reply that is much too long",
        "a</s>b<|im_end|>",
    )
    tiny_jobs.write_rows(path, rows)
    held_out = str(folder / "data" / "test.jsonl")
    job = tiny_generation.generation_job(folder, **{"data.max_bad_rows": 1, "data.validation": held_out})
    _, dataset = load_dataset(job)
    reasons = "\n".join(line for invalid in dataset.invalid.values() for line in invalid.skipped_lines())
    assert (
        "train.jsonl:1: answer (column label): the reply is empty; write a text, or remove the row" in reasons
    )
    assert (
        "train.jsonl:2: answer (column label): the reply has 30 tokens with its end token, above max_tokens 12"
        in reasons
    )
    assert "train.jsonl:3: answer (column label): the reply contains the special token </s>" in reasons


SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}, "to": {"type": "string"}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_replies_follow_the_schema_of_the_task(folder: Path) -> None:
    """A file of the schema is read once, and then part of the fitted job."""
    for name in ("train", "test"):
        path = folder / "data" / f"{name}.jsonl"
        rows = [{**json.loads(line), "label": {"n": 1}} for line in path.read_text().splitlines()]
        rows[1]["label"] = {"n": 2, "to": "é"}
        rows[2]["label"] = '{"n":1}'
        if name == "train":
            rows[3]["label"], rows[4]["label"], rows[5]["label"] = {"n": 3}, "one", {"to": "é", "n": 1}
        tiny_jobs.write_rows(path, rows)
    schema = folder / "reply.schema.json"
    schema.write_text(json.dumps(SCHEMA))
    held_out = str(folder / "data" / "test.jsonl")
    task = {"json_schema": str(schema), "max_tokens": 24, "metrics": ["exact", "slot_f1", "valid_json"]}
    options = {"data.max_bad_rows": 0.9, "data.validation": held_out}
    job, dataset = load_dataset(tiny_generation.generation_job(folder, task=task, **options))
    schema.unlink()
    assert job.tasks["answer"].json_schema == SCHEMA
    reasons = "\n".join(dataset.invalid["train"].skipped_lines())
    for number, found in ((4, "'3}' behind '{\"n\": '"), (6, '\'to": "é"')):
        start = f"train.jsonl:{number}: answer (column label): the reply does not follow json_schema: "
        assert start in reasons
        assert found in reasons
    assert "train.jsonl:5: answer (column label): the reply is not JSON" in reasons
    preprocessor = Preprocessor(job.inputs, job.tasks)
    renderer = PromptRenderer(job.tasks["answer"], job.inputs)
    targets = [preprocessor.from_row(row).targets["answer"] for row in list(dataset.splits["train"])[:3]]
    texts = [renderer.decode(list(map(int, target))) for target in targets]
    assert texts == ['{"n": 1}', '{"n": 2, "to": "é"}', '{"n": 1}']


def test_dialogues_that_cannot_be_learned_are_invalid_rows(tmp_path: Path) -> None:
    tiny_generation.make_dialogues(tmp_path, 12, 4)
    path = tmp_path / "data" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    user, reply = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
    rows[0]["messages"], rows[1]["messages"], rows[2]["messages"] = [], [user], [reply]
    rows[3]["messages"] = [{"role": "bot", "content": "hi"}, reply]
    rows[4]["messages"] = [{**user, "content": "a" * 150}, reply]
    rows[5]["messages"] = [user, {**reply, "content": "a reply that is much too long"}]
    rows[6]["messages"] = json.dumps([user, reply, user, reply])
    rows[7]["messages"] = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    tiny_jobs.write_rows(path, rows)
    held_out = str(tmp_path / "data" / "test.jsonl")
    task = {"learned_replies": "all"}
    job = tiny_generation.dialogue_job(
        tmp_path, "smollm", task, **{"data.max_bad_rows": 1, "data.validation": held_out}
    )
    job, dataset = load_dataset(job)
    reasons = dataset.invalid["train"].skipped_lines()
    for number, reason in enumerate(
        [
            "messages: missing: the list of messages is empty, and this input is required",
            "reply (column messages): the last message has the role user; it must be the assistant's reply",
            "messages: missing: the list of messages is empty, and this input is required",
            "messages: [0].role: 'bot' is no role; use one of system, developer, user",
            "reply (column messages): messages: [0]: the last message, with the system's and the words of the prompt, "
            "exceeds max_tokens 130; shorten it, or raise inputs.messages.max_tokens",
            "reply (column messages): the reply has 30 tokens with its end token, above max_tokens 12",
        ],
        1,
    ):
        assert any(f"train.jsonl:{number}: {reason}" in line for line in reasons)
    preprocessor = Preprocessor(job.inputs, job.tasks)
    renderer = PromptRenderer(job.tasks["reply"], job.inputs)
    targets = [preprocessor.from_row(row).targets["reply"] for row in list(dataset.splits["train"])[:2]]
    assert targets == [2 * renderer.reply_ids("yes"), renderer.reply_ids("yes")]


@pytest.mark.parametrize("stored", [True, False])
def test_a_global_batch_weighs_as_much_as_its_replies_have_tokens(stored: bool, folder: Path) -> None:
    """Known from validation, or from rows in memory; the same for any number of workers and accumulation steps."""
    job, dataset = load_dataset(
        tiny_generation.generation_job(
            folder,
            task={"references": "photo"},
            **{"train.batch_size": 4, "train.gradient_accumulation_steps": 2},
        )
    )
    rows = dataset.splits["train"]
    preprocessor = Preprocessor(job.inputs, job.tasks)
    lengths = np.array([len(preprocessor.from_row(row).targets["answer"]) - 2 for row in rows])
    assert len(set(lengths.tolist())) > 1
    sampler = BatchSampler.from_job(rows if stored else list(rows), job)
    for step in range(sampler.steps_per_epoch):
        parts = [part for rank in range(2) for part in sampler.step_indices(1, step, rank, 2)]
        numbers = np.concatenate(parts)
        size = sampler.global_batch(1, step)
        assert size == (len(numbers), {"answer": lengths[numbers].sum()})
        losses = LossOutput({"answer": 3.0 * size.loss_weights["answer"], "other": 1.0})  # type: ignore[dict-item]
        assert losses.scale_tasks(size.loss_factors).tasks == pytest.approx(
            {"answer": 3.0 * size.rows, "other": 1.0}
        )
