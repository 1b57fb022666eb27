"""Mixtures of rows."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch
from variants import train_and_reload

from rayfuse.data.collate import Batch
from rayfuse.errors import SpecError
from rayfuse.model.fused import FusedModel
from rayfuse.model.fusion import FusionModule
from rayfuse.model.mixup import Mixing

BRIGHTNESS = {"tasks.brightness": {"type": "regression"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FusedModel, Batch]:
    folder = tmp_path_factory.mktemp("mixup")
    off = {"inputs.image.encoder.dropout": 0.0, "inputs.text.encoder.dropout": 0.0}
    job = tiny_jobs.tiny_job(folder, **{"train.mixup": {"alpha": 0.4}, **BRIGHTNESS, **off})
    return train_and_reload(folder, job)


def losses_with(model: FusedModel, batch: Batch, share: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    partner = torch.arange(batch.batch_size).roll(1)
    mixing = Mixing(partner, torch.full((batch.batch_size,), share))
    monkeypatch.setattr(Mixing, "sample", classmethod(lambda *_: mixing))
    model.train()
    with torch.no_grad():
        return model.losses(model(batch), batch), partner


def test_coefficient_1_is_the_plain_loss(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = trained
    plain = model.losses(model.eval()(batch), batch)
    mixed, _ = losses_with(model, batch, 1.0, monkeypatch)
    for name, loss in plain.tasks.items():
        torch.testing.assert_close(mixed.tasks[name], loss)


def test_coefficient_0_is_the_partners_loss(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = trained
    plain = model.losses(model.eval()(batch), batch)
    mixed, _ = losses_with(model, batch, 0.0, monkeypatch)
    for name, loss in plain.tasks.items():  # every row is the partner of one
        torch.testing.assert_close(mixed.tasks[name], loss, rtol=1e-4, atol=1e-4)


def test_vectors_and_losses_are_interpolated(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = trained
    mixed, partner = losses_with(model, batch, 0.3, monkeypatch)
    model.eval()
    with torch.no_grad():
        vector = model.fuse(model.encode(batch), batch)["vector"]
        logits = model.tasks["answer"].linear(0.3 * vector + 0.7 * vector[partner])
    targets = batch.targets["answer"].long()
    own, other = (
        torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        for wanted in (targets, targets[partner])
    )
    torch.testing.assert_close(mixed.tasks["answer"], 0.3 * own + 0.7 * other)


def test_coefficients_and_partners_are_random() -> None:
    torch.manual_seed(0)
    mixing = Mixing.sample(0.2, 1000, torch.device("cpu"))
    assert sorted(mixing.permutation.tolist()) == list(range(1000))
    assert 0.45 < mixing.lam.mean() < 0.55
    assert ((mixing.lam < 0.1) | (mixing.lam > 0.9)).float().mean() > 0.5


class WithoutFusedVector(FusionModule):
    """A head that does not support mixup."""

    def forward(self, inputs: Any) -> Any:
        return {"vector": next(iter(inputs.values()))[0][:, 0]}

    def apply_head(self, task: str, head: Any, fused: Any) -> torch.Tensor:
        return head(fused)


def test_fusions_and_tasks_without_a_fused_vector_are_rejected(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(
        tmp_path, **{"train.mixup": {}, "fusion": {"type": f"{__name__}:WithoutFusedVector"}}
    )
    with pytest.raises(SpecError, match="train.mixup: this fusion does not predict from one fused vector"):
        train_and_reload(tmp_path, job)
