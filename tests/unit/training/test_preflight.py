"""Validation before any row is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_jobs

from rayfuse.errors import SpecError
from rayfuse.training.preflight import preflight


def test_fp16_without_gpus(tmp_path: Path) -> None:
    preflight(tiny_jobs.tiny_job(tmp_path, **{"train.precision": "fp16", "compute.gpus_per_worker": 1}))
    with pytest.raises(SpecError, match="train.precision: fp16 needs a GPU; use auto, bf16 or fp32"):
        preflight(tiny_jobs.tiny_job(tmp_path, **{"train.precision": "fp16"}))


SWITCH = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "reply.json: file not found; check the path"),
        ("{", "reply.json: is not valid JSON"),
        ("[]", "reply.json: the file must be a JSON object"),
        (json.dumps({"type": "text"}), "the JSON schema cannot be used: Invalid type: text; correct it"),
        (
            json.dumps(SWITCH),
            "max_tokens: 8 tokens are too few: the shortest reply that follows the JSON schema has 12; raise max_tokens",
        ),
    ],
)
def test_a_schema_that_no_reply_can_follow(content: str | None, message: str, tmp_path: Path) -> None:
    """A reply is never cut off at max_tokens (vllm#8350)."""
    tiny_generation.make_rows(tmp_path, 4, 4)
    schema = tmp_path / "reply.json"
    if content is not None:
        schema.write_text(content)
    job = tiny_generation.generation_job(tmp_path, task={"json_schema": str(schema), "max_tokens": 8})
    with pytest.raises(SpecError) as raised:
        preflight(job)
    path = "tasks.answer." if message.startswith("max_tokens") else "tasks.answer.json_schema: "
    assert str(raised.value).startswith(path)
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_schema_whose_replies_fit(tmp_path: Path) -> None:
    tiny_generation.make_rows(tmp_path, 4, 4)
    for name in ("train", "test"):
        path = tmp_path / "data" / f"{name}.jsonl"
        rows: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
        tiny_jobs.write_rows(path, [{**row, "label": {"on": True}} for row in rows])
    preflight(tiny_generation.generation_job(tmp_path, task={"json_schema": SWITCH, "max_tokens": 13}))
