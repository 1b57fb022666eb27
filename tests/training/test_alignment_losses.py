"""Auxiliary alignment losses."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch
from variants import train_and_reload

from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.data.dataset import load_dataset
from rayfuse.data.sampler import SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.data.train_batches import build_train_batch
from rayfuse.model.alignment_losses import AlignedRows, build_alignment_loss
from rayfuse.model.fused import FusedModel
from rayfuse.spec import align_losses as spec
from rayfuse.spec.align_losses import ALIGNMENT_LOSSES

LOSSES = {
    "contrastive": spec.ContrastiveLossConfig(type="contrastive"),
    "siamese": spec.SiameseLossConfig(type="siamese"),
    "margin": spec.MarginLossConfig(type="margin"),
}


def rows_of(inputs: dict[str, torch.Tensor], there: dict[str, list[bool]] | None = None) -> AlignedRows:
    """Build aligned rows with one token per input: float (batch, dim)."""
    size = len(next(iter(inputs.values())))
    masks = {name: torch.tensor((there or {}).get(name, [True] * size)) for name in inputs}
    batch = Batch(
        {name: EncoderBatch(None, torch.zeros(size, 1, dtype=torch.int64)) for name in inputs},
        {},
        torch.ones(size),
    )
    tokens = {name: (values.unsqueeze(1), masks[name].unsqueeze(1)) for name, values in inputs.items()}
    return AlignedRows(tokens, {}, {}, batch)


def test_values_against_a_manual_computation() -> None:
    a, b = (
        torch.eye(2),
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
    )  # the second row's b is the first row's direction
    rows = rows_of({"a": a, "b": b})
    # Cosines of a to b are [[1, 1], [0, 0]], of b to a [[1, 0], [1, 0]].
    contrastive = build_alignment_loss(spec.ContrastiveLossConfig(type="contrastive", temperature=1.0))(rows)
    forth = [math.log(2), math.log(2)]
    back = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]
    assert contrastive.tolist() == pytest.approx(
        [(f + g) / 2 for f, g in zip(forth, back, strict=True)], abs=1e-5
    )
    siamese = build_alignment_loss(spec.SiameseLossConfig(type="siamese", margin=0.2))(rows)
    assert siamese.tolist() == pytest.approx([(0.8 + 0.0) / 2, 1 + (0.0 + 0.8) / 2], abs=1e-5)
    margin = build_alignment_loss(spec.MarginLossConfig(type="margin", margin=0.2))(rows)
    assert margin.tolist() == pytest.approx([(0.2 + 0.0) / 2, (0.2 + 1.2) / 2], abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_attracts_pairs_and_repels_others(name: str) -> None:
    torch.manual_seed(0)
    inputs = {key: torch.randn(8, 6, requires_grad=True) for key in "abc"}
    loss = build_alignment_loss(LOSSES[name])
    optimizer = torch.optim.Adam(inputs.values(), lr=0.1)
    first = loss(rows_of(inputs)).mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss(rows_of(inputs)).mean().backward()
        optimizer.step()
    assert loss(rows_of(inputs)).mean().item() < 0.3 * first
    a, c = (torch.nn.functional.normalize(inputs[key].detach(), dim=1) for key in "ac")
    assert ((a @ c.T).argmax(dim=1) == torch.arange(8)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_a_pair_have_zero_loss_with_gradients(name: str) -> None:
    inputs = {key: torch.randn(4, 6, requires_grad=True) for key in "ab"}
    loss = build_alignment_loss(LOSSES[name])(rows_of(inputs, {"a": [True] * 4, "b": [False] * 4}))
    assert loss.tolist() == [0] * 4
    loss.sum().backward()
    for values in inputs.values():
        assert values.grad is not None
        assert not values.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_absent_inputs_have_no_effect(name: str) -> None:
    torch.manual_seed(1)
    there = {"b": [True, True, False, True], "c": [True, False, True, True]}
    inputs = {key: torch.randn(4, 6) for key in "abc"}
    other = {key: values.clone() for key, values in inputs.items()}
    other["b"][2], other["c"][1] = torch.randn(6), torch.zeros(6)
    loss = build_alignment_loss(LOSSES[name])
    torch.testing.assert_close(loss(rows_of(inputs, there)), loss(rows_of(other, there)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("align")


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
def test_every_loss_trains(name: str, folder: Path, tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(folder, **{"align.loss": {"type": name, "weight": 0.5}})
    model, batch = train_and_reload(tmp_path, job)
    model.train()
    outputs = model(batch)
    assert outputs.alignment_losses[name].shape == (batch.batch_size,)
    losses = model.losses(outputs, batch)
    torch.testing.assert_close(
        model.total_loss(losses, batch), losses.tasks["answer"] + 0.5 * losses.alignment[name]
    )


def consistent(folder: Path) -> tuple[FusedModel, Batch, Any]:
    job = tiny_jobs.tiny_job(
        folder, **{"align.loss": [{"type": "consistency"}, {"type": "contrastive"}], "train.subset_loss": {}}
    )
    job, dataset = load_dataset(job)
    store = SampleCache(dataset.splits["train"], Preprocessor(job.inputs, job.tasks))
    torch.manual_seed(0)
    return FusedModel(job).train(), build_train_batch(range(12), store, job, 0), job


def test_consistency_compares_views_with_their_full_row(folder: Path) -> None:
    model, batch, _ = consistent(folder)
    outputs = model(batch)
    loss = outputs.alignment_losses["consistency"]
    assert batch.source_index is not None
    whole, source = outputs.tasks["answer"].log_softmax(1), batch.source_index
    wanted = (whole[source].exp() * (whole[source] - whole)).sum(1)
    torch.testing.assert_close(loss, wanted.masked_fill(batch.is_full, 0.0), rtol=1e-4, atol=1e-6)
    assert (loss[~batch.is_full] > 0).all()
    assert not outputs.alignment_losses["contrastive"][~batch.is_full].any()
    for head in model.tasks.values():
        torch.nn.init.zeros_(head.linear.weight)
    assert model(batch).alignment_losses["consistency"].abs().max() < 1e-6


def test_alignment_losses_are_only_computed_in_training(folder: Path) -> None:
    model, batch, _ = consistent(folder)
    trained, evaluated = model(batch), model.eval()(batch)
    assert set(trained.tasks) == set(evaluated.tasks) == {"answer"}
    assert set(trained.alignment_losses) == {"consistency", "contrastive"}
    assert not evaluated.alignment_losses
