"""Rows whose messages have images: how they are read, hashed and validated."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_generation
import tiny_jobs

from rayfuse.data.dataset import load_dataset
from rayfuse.data.row_adapter import RowAdapter, describe_inputs
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import InvalidInputError

REPLY = {"role": "assistant", "content": "yes"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}


def image(path: Any) -> dict[str, Any]:
    return {"type": "image", "image": path}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_generation.make_dialogues_with_images(tmp_path, 12, 4)
    tiny_jobs.write_image(tmp_path / "data" / "a.png", "red")
    tiny_jobs.write_image(tmp_path / "data" / "b.png", "green")
    return tmp_path


def load(folder: Path, rows: list[Any], **overrides: Any) -> Any:
    tiny_jobs.write_rows(folder / "data" / "train.jsonl", rows)
    options = {"data.max_bad_rows": 1, "data.validation": str(folder / "data" / "test.jsonl"), **overrides}
    return load_dataset(
        tiny_generation.dialogue_job(
            folder, "smollm", {"prompt": None}, inputs=tiny_generation.inputs_with_parts(), **options
        )
    )


def test_images_are_read_in_the_order_of_the_messages(folder: Path) -> None:
    data = base64.b64encode((folder / "data" / "b.png").read_bytes()).decode()
    rows = [
        {"messages": [user(image("a.png"), image("b.png")), REPLY]},
        {
            "messages": json.dumps(
                [user(image("a.png")), REPLY, user(image(f"data:image/png;base64,{data}")), REPLY]
            )
        },
        {"messages": [user(), REPLY]},
        {"messages": [user(image("b.png"), image("a.png")), REPLY]},
    ]
    job, dataset = load(folder, rows)
    preprocessor = Preprocessor(job.inputs, job.tasks)
    first, second, third, fourth = [preprocessor.from_row(row) for row in dataset.splits["train"]]
    assert first.keys["image"] == second.keys["image"] == fourth.keys["image"][::-1]
    assert first.keys["messages"] == fourth.keys["messages"]
    assert "image" not in third.features
    digests = {preprocessor.fingerprint(row).digest for row in dataset.splits["train"]}
    assert len(digests) == 4


def test_rows_whose_files_are_not_those_of_the_messages_are_invalid(folder: Path) -> None:
    rows = [
        {"messages": [user(image("none.png")), REPLY]},
        {"messages": [user({"type": "image"}), REPLY]},
        {"messages": [user(*[image("a.png")] * 4), REPLY]},
        {"messages": [user({"type": "audio", "audio": "a.wav"}), REPLY]},
        {"messages": [user(image("a.png")), REPLY]},
    ]
    _, dataset = load(folder, rows)
    lines = list(dataset.invalid["train"].skipped_lines())
    for number, reason in enumerate(
        [
            "image: none.png: no such file",
            "image: 0 values, and the messages of `messages` have 1 parts of type image",
            "image: 4 values are above the maximum of 3; give fewer, or raise inputs.image.max_items",
            "messages: a message has a part of type audio, and this model reads those of type image",
        ],
        1,
    ):
        assert any(f"train.jsonl:{number}: {reason}" in line for line in lines), reason
    assert len(dataset.splits["train"]) == 1


def test_files_may_be_in_a_column_next_to_the_messages(folder: Path) -> None:
    rows = [
        {"images": ["a.png", "b.png"], "messages": [user({"type": "image"}, {"type": "image"}), REPLY]},
        {"images": ["a.png"], "messages": [user({"type": "image"}, {"type": "image"}), REPLY]},
        {"messages": [user(), REPLY]},
    ]
    job, dataset = load(folder, rows, **{"inputs.image.column": "images"})
    preprocessor = Preprocessor(job.inputs, job.tasks)
    samples = [preprocessor.from_row(row) for row in dataset.splits["train"]]
    assert [len(sample.features.get("image", ())) for sample in samples] == [2, 0]
    assert "image: 1 values, and the messages of `messages` have 2 parts" in next(
        iter(dataset.invalid["train"].skipped_lines())
    )


def test_rows_to_predict_name_files_in_their_messages(folder: Path) -> None:
    job, dataset = load(folder, [{"messages": [user(image("a.png"), image("b.png")), REPLY]}])
    [trained] = [Preprocessor(job.inputs).from_row(row) for row in dataset.splits["train"]]
    adapter = RowAdapter(describe_inputs(job.inputs))
    messages = [user(image("a.png"), image("b.png"))]
    frame = pd.DataFrame(
        [{"messages": np.array([{**messages[0], "content": np.array(messages[0]["content"])}])}]
    )
    for row in ({"messages": messages}, {"messages": json.dumps(messages)}, *adapter.rows_of(frame)):
        sample = Preprocessor(job.inputs).from_values(adapter.read(row, str(folder / "data")))
        assert sample.keys == trained.keys
        with pytest.raises(InvalidInputError, match="image: expected the bytes of a file, got a path or URL"):
            adapter.read(row, None)
    contents = [(folder / "data" / name).read_bytes() for name in ("a.png", "b.png")]
    given = {"messages": [user({"type": "image"}, {"type": "image"})], "image": contents}
    assert Preprocessor(job.inputs).from_values(given).keys == trained.keys
    for hidden in ("a.png", str(folder / "data" / "a.png"), "https://example.org/a.png"):
        with pytest.raises(
            InvalidInputError, match="must have its file as a data: URI; send other files as `image`"
        ):
            Preprocessor(job.inputs).from_values({"messages": [user(image(hidden))]})
