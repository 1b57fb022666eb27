"""Alignments: per token or by learned queries, with masks."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch
from pydantic import TypeAdapter
from variants import train_and_reload

from rayfuse.data.dataset import load_dataset
from rayfuse.errors import SpecError
from rayfuse.model.alignment import build_alignment
from rayfuse.model.fused import FusedModel
from rayfuse.spec.align import ALIGNMENTS, AlignConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "dim": 16},
    "mlp": {"type": "mlp", "dim": 16, "hidden": 24, "layers": 3},
    "transformer": {"type": "transformer", "dim": 16, "num_queries": 3, "layers": 2, "heads": 2},
    "identity": {"type": "identity", "dim": 16},
}
WIDTH = 12
"""Width of the tokens built here; the encoders of the tiny job return a width of 16."""
FUSIONS = [{"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1, "heads": 2}]


def built(kind: str, **more: Any) -> Any:
    width = {"dim": WIDTH} if kind == "identity" else {}
    options: Any = TypeAdapter(AlignConfig).validate_python(VARIANTS[kind] | width | more)
    return build_alignment(options, WIDTH)


def aligned(kind: str) -> Any:
    torch.manual_seed(0)
    return built(kind).eval()


def test_every_alignment_has_a_variant() -> None:
    assert VARIANTS.keys() == ALIGNMENTS.keys()


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: fusion["type"])
@pytest.mark.parametrize("kind", list(VARIANTS))
def test_every_alignment_trains_and_reloads(kind: str, fusion: dict[str, Any], tmp_path: Path) -> None:
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, align=VARIANTS[kind], fusion=fusion))


@pytest.mark.parametrize("kind", list(VARIANTS))
def test_masked_tokens_and_other_rows_have_no_effect(kind: str) -> None:
    alignment = aligned(kind)
    tokens, mask = torch.randn(3, 5, WIDTH), torch.ones(3, 5, dtype=torch.bool)
    mask[0, 2:] = False
    index = torch.tensor([[0], [1], [2]])
    full, counts = alignment((tokens, mask), index)
    noisy = tokens.clone()
    noisy[0, 2:] = 100
    again, _ = alignment((noisy, mask), index)
    torch.testing.assert_close(again[counts], full[counts])
    alone, _ = alignment((tokens[:1, :2], mask[:1, :2]), torch.tensor([[0]]))
    torch.testing.assert_close(alone[0], full[0, : alone.shape[1]])


def test_queries_give_every_input_the_same_number_of_tokens() -> None:
    alignment = aligned("transformer")
    torch.nn.init.normal_(alignment.placeholder)
    tokens, mask = torch.randn(2, 7, WIDTH), torch.ones(2, 7, dtype=torch.bool)
    mask[1] = False  # a value without a single token
    found, counts = alignment((tokens, mask), torch.tensor([[0, -1], [1, 0], [-1, -1]]))
    assert found.shape == (3, 6, 16)
    assert counts.tolist() == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3, [False] * 6]
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[2], alignment.placeholder.expand(6, -1))
    torch.testing.assert_close(found[1, 3:], found[0, :3])


def test_heads_that_do_not_divide_dim_are_rejected(tmp_path: Path) -> None:
    block = VARIANTS["transformer"] | {"heads": 3}
    with pytest.raises(SpecError, match=r"align\.heads: 3 does not divide dim 16"):
        tiny_jobs.tiny_job(tmp_path, align=block)


@pytest.mark.parametrize("kind", list(VARIANTS))
def test_standardizer_gives_mean_0_and_std_1(kind: str) -> None:
    torch.manual_seed(0)
    part = built(kind, standardize=True).eval()
    tokens = torch.randn(64, 3, WIDTH) * torch.linspace(0.1, 5, WIDTH) + 40
    tokens[..., 7] = 3.0
    mask = torch.ones(64, 3, dtype=torch.bool)
    mask[:, 2] = False
    index = torch.arange(64).unsqueeze(1)
    before, _ = part((tokens, mask), index)
    part.standardizer.start_accumulating()
    with torch.inference_mode():
        part((tokens[:40], mask[:40]), index[:40])
        part((tokens[40:], mask[40:]), index[:24])
    part.standardizer.finalize()
    scaled = part.standardizer(tokens, mask)[mask]
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    wanted = torch.ones(WIDTH)
    wanted[7] = 0  # what does not differ stays as it is
    torch.testing.assert_close(scaled.std(dim=0, correction=0), wanted, atol=1e-3, rtol=0)
    after, _ = part((tokens, mask), index)
    assert not torch.allclose(before, after)


def test_standardizer_reloads(tmp_path: Path) -> None:
    align = VARIANTS["linear"] | {"standardize": True}
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, align=align, fusion=FUSIONS[0]))


def test_identity_preserves_tokens_and_rejects_another_width(tmp_path: Path) -> None:
    tokens, mask = torch.randn(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool)
    found, _ = aligned("identity")((tokens, mask), torch.tensor([[1], [0]]))
    torch.testing.assert_close(found, tokens[[1, 0]], atol=0, rtol=0)
    job = tiny_jobs.tiny_job(tmp_path, align=VARIANTS["identity"] | {"dim": 12}, fusion=FUSIONS[0])
    with pytest.raises(
        SpecError,
        match="inputs.image: align.dim: 12 differs from .* width of 16, .*; use dim: 16, or another",
    ):
        FusedModel(load_dataset(job)[0])


def test_alignment_per_input(tmp_path: Path) -> None:
    input_options = VARIANTS["identity"] | {"standardize": True}
    job = tiny_jobs.tiny_job(tmp_path, align=VARIANTS["mlp"], **{"inputs.text.align": input_options})
    model, _ = train_and_reload(tmp_path, job)
    kinds = {name: type(part) for name, part in model.alignment.items()}
    assert kinds == {
        "image": ALIGNMENTS.implementation("mlp"),
        "text": ALIGNMENTS.implementation("identity"),
    }


@pytest.mark.parametrize(
    ("input_options", "problem"),
    [
        ({"dim": 8}, "inputs.text.align.dim: 8 is not align.dim 16, the width of all inputs"),
        (
            {"loss": {"type": "contrastive"}},
            "inputs.text.align.loss: a single input has no alignment losses",
        ),
    ],
)
def test_invalid_alignments_per_input_are_rejected(
    input_options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=problem):
        tiny_jobs.tiny_job(tmp_path, **{"inputs.text.align": VARIANTS["linear"] | input_options})


def test_linear_alignment_with_dropout_and_without_norm() -> None:
    part = built("linear", dropout=0.5, norm=False)
    tokens, mask = torch.randn(4, 1, WIDTH), torch.ones(4, 1, dtype=torch.bool)
    assert not torch.equal(part.train().align(tokens, mask)[0], part.align(tokens, mask)[0])
    torch.testing.assert_close(
        part.eval().align(tokens, mask)[0], tokens @ part.linear.weight.T + part.linear.bias
    )
