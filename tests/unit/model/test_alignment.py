"""Alignments: token by token or through learned queries, and what masks do."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch
from pydantic import TypeAdapter
from variants import train_and_reload

from rayfuse.errors import SpecError
from rayfuse.model.alignment import ALIGNMENTS, build_alignment
from rayfuse.spec.align import Align

VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "dim": 16},
    "mlp": {"type": "mlp", "dim": 16, "hidden": 24, "layers": 3},
    "transformer": {"type": "transformer", "dim": 16, "queries": 3, "layers": 2, "heads": 2},
}
FUSIONS = [{"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1, "heads": 2}]


def aligned(kind: str) -> Any:
    torch.manual_seed(0)
    options: Any = TypeAdapter(Align).validate_python(VARIANTS[kind])
    return build_alignment(options, 12).eval()


def test_every_alignment_is_tested() -> None:
    assert VARIANTS.keys() == ALIGNMENTS.keys()


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: fusion["type"])
@pytest.mark.parametrize("kind", list(VARIANTS))
def test_every_alignment_trains_and_is_the_same_after_loading(
    kind: str, fusion: dict[str, Any], tmp_path: Path
) -> None:
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, align=VARIANTS[kind], fusion=fusion))


@pytest.mark.parametrize("kind", list(VARIANTS))
def test_masked_tokens_and_neighbours_change_nothing(kind: str) -> None:
    alignment = aligned(kind)
    tokens, mask = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    mask[0, 2:] = False
    index = torch.tensor([[0], [1], [2]])
    whole, counts = alignment((tokens, mask), index)
    noisy = tokens.clone()
    noisy[0, 2:] = 100
    again, _ = alignment((noisy, mask), index)
    torch.testing.assert_close(again[counts], whole[counts])
    alone, _ = alignment((tokens[:1, :2], mask[:1, :2]), torch.tensor([[0]]))
    torch.testing.assert_close(alone[0], whole[0, : alone.shape[1]])


def test_queries_make_as_many_tokens_of_every_input() -> None:
    alignment = aligned("transformer")
    torch.nn.init.normal_(alignment.placeholder)
    tokens, mask = torch.randn(2, 7, 12), torch.ones(2, 7, dtype=torch.bool)
    mask[1] = False  # a value without a single token
    found, counts = alignment((tokens, mask), torch.tensor([[0, -1], [1, 0], [-1, -1]]))
    assert found.shape == (3, 6, 16)
    assert counts.tolist() == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3, [False] * 6]
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[2], alignment.placeholder.expand(6, -1))
    torch.testing.assert_close(found[1, 3:], found[0, :3])


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    block = VARIANTS["transformer"] | {"heads": 3}
    with pytest.raises(SpecError, match=r"align\.heads: 3 heads do not divide dim 16"):
        tiny_jobs.tiny_job(tmp_path, align=block)
