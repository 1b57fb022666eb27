"""Entities as conlleval counts them, and tags of padded and truncated words."""

from typing import Any

import numpy as np
import pytest
import torch

from rayfuse.model.tasks import build_task
from rayfuse.model.tasks.tagging import count_entities, extract_entities
from rayfuse.spec.tasks.tagging import TAGGING_METRICS, TaggingTaskConfig

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O", []),
        ("B-a I-a O", [(0, 2, "a")]),
        ("B-a B-a", [(0, 1, "a"), (1, 2, "a")]),
        ("O I-a I-a", [(1, 3, "a")]),  # I after O begins one
        ("I-a", [(0, 1, "a")]),
        ("B-a I-b I-b", [(0, 1, "a"), (1, 3, "b")]),  # so does I of another type
        ("I-a I-b", [(0, 1, "a"), (1, 2, "b")]),
        ("B-a I-a B-b I-b O I-b", [(0, 2, "a"), (2, 4, "b"), (5, 6, "b")]),
        ("B-x-y I-x-y", [(0, 2, "x-y")]),
        ("", []),
    ],
)
def test_chunks(tags: str, entities: list[Any]) -> None:
    assert extract_entities(tags.split()) == entities
    assert conlleval(tags.split()) == entities


def conlleval(tags: list[str]) -> list[Any]:
    """Apply the rules of conlleval's endOfChunk and startOfChunk literally."""
    found, begun = [], None
    previous, previous_type = "O", ""
    for i, whole in enumerate([*tags, "O"]):
        tag, _, kind = whole.partition("-")
        end = (previous in "BI" and tag in "BO") or (previous != "O" and previous_type != kind)
        start = tag == "B" or (previous == "O" and tag == "I") or (tag != "O" and previous_type != kind)
        if begun is not None and end:
            found.append((begun, i, previous_type))
            begun = None
        if start:
            begun = i
        previous, previous_type = tag, kind
    return found


def test_chunks_of_any_tags_are_those_of_conlleval() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        tags = list(rng.choice(TAGS, rng.integers(0, 9)))
        assert extract_entities(tags) == conlleval(tags), tags


def test_counts() -> None:
    predicted = [["B-a", "I-a", "O", "B-b"], ["B-a", "O"]]
    true = [["B-a", "I-a", "O", "B-a"], ["B-a", "I-a"]]
    assert count_entities(predicted, true) == {"a": (1, 2, 3), "b": (0, 1, 0)}


@pytest.fixture
def head() -> Any:
    task = TaggingTaskConfig(type="tagging", column="x", input="text", entities=["a", "b"])
    return build_task(task, 4)


def outputs_of(*rows: str) -> np.ndarray:
    """Make outputs of these tags; `-` is a word that was not read. Shorter rows are padded as in evaluation."""
    longest = max(len(row.split()) for row in rows)
    outputs = np.full((len(rows), longest, len(TAGS) + 1), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, tag in enumerate(row.split()):
            outputs[i, j] = 0
            if tag != "-":
                outputs[i, j, TAGS.index(tag)] = 5
                outputs[i, j, -1] = 1
    return outputs


def targets_of(*rows: str) -> np.ndarray:
    longest = max(len(row.split()) for row in rows)
    padded = [[TAGS.index(tag) for tag in row.split()] for row in rows]
    return np.array([row + [np.nan] * (longest - len(row)) for row in padded], dtype=np.float32)


def test_metrics_by_hand(head: Any) -> None:
    """4 words of the first row, one of them truncated; 2 of 3 predicted entities are among the 4 true ones."""
    outputs = outputs_of("B-a I-a O -", "B-b B-b")
    targets = targets_of("B-a I-a O B-a", "B-b I-b")
    found = head.metrics(outputs, targets)
    assert found == pytest.approx({"accuracy": 4 / 6, "precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
    assert {"loss", *found} == set(TAGGING_METRICS)
    assert head.details(outputs, targets)["per_class"] == {
        "a": {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "b": {"precision": 0, "recall": 0, "f1": 0, "support": 1},
    }


def test_a_text_that_was_not_read_has_no_entities(head: Any) -> None:
    found = head.metrics(outputs_of("-", "-"), targets_of("B-a O", "O O"))
    assert found == {"accuracy": 0.75, "precision": 0, "recall": 0, "f1": 0}


def test_the_loss_is_over_words_that_were_read(head: Any) -> None:
    outputs = torch.from_numpy(np.nan_to_num(outputs_of("B-a - O", "O", "- -"))).requires_grad_()
    targets = torch.from_numpy(targets_of("B-b B-a O O", "O", "O O"))
    loss = head.loss(outputs, targets)
    wrong, right = np.log(np.exp(5) + 4), np.log(np.exp(5) + 4) - 5
    torch.testing.assert_close(loss, torch.tensor([(wrong + right) / 2, right, 0], dtype=torch.float32))
    loss.sum().backward()
    assert torch.isfinite(outputs.grad).all()  # type: ignore[arg-type]


def test_predictions_refer_to_words(head: Any) -> None:
    outputs = torch.from_numpy(np.nan_to_num(outputs_of("O B-a I-a - B-b -", "-")))
    assert head.format_predictions(outputs) == [
        {
            "tags": ["O", "B-a", "I-a", "O", "B-b"],
            "entities": [{"type": "a", "start": 1, "end": 3}, {"type": "b", "start": 4, "end": 5}],
        },
        {"tags": [], "entities": []},
    ]


def test_words_are_read_at_their_first_token(head: Any) -> None:
    tokens = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [False] * 5])
    starts = torch.tensor([[1, 3, -1], [0, 2, -1]])
    fused = {"vector": torch.zeros(2, 4), "inputs": {"text": (tokens, mask)}, "word_starts": {"text": starts}}
    outputs = head(fused)
    torch.testing.assert_close(outputs[0, :2, :-1], head.linear(tokens[0, [1, 3]]))
    assert outputs[:, :, -1].tolist() == [[1, 1, 0], [0, 0, 0]]  # the second text is absent
    assert not outputs[1].any()
