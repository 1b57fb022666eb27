"""Train a job for two steps, save it, load it, and compare: what every variant of every part must stand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rayfuse.data.batches import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import SampleMaker
from rayfuse.model.folder import load_model, load_weights, save_model
from rayfuse.model.fused import FusedModel, trained_tensors
from rayfuse.train.adapters import adapter_beginnings
from rayfuse.train.engine import parameter_groups

STEPS = 2


def train_and_reload(folder: Path, job: Any, rows: int = 16) -> tuple[FusedModel, Batch]:
    """The trained model of a job, in evaluation mode, and the batch that it saw.

    Asserts that training changed what it should, that a batch without any of the optional inputs trains as well,
    and that the model is the same after saving and loading: outputs to 1e-5.
    """
    torch.manual_seed(0)
    job, dataset = load_dataset(job)
    maker = SampleMaker(job.inputs, job.tasks)
    batch = collate([maker.from_row(row) for row in dataset.splits["train"][:rows]], maker.modalities)
    model = FusedModel(job)
    begin(model, [batch])
    model.train()
    before = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
    _train(model, job, batch)
    after = trained_tensors(model)
    assert after, "nothing is trained"
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    _compare(folder, job, model.eval(), batch)
    return model, batch


def begin(model: FusedModel, batches: Sequence[Batch]) -> None:
    """Let adapters begin by what the batches tell, as training does before its first step."""
    job = SimpleNamespace(train=SimpleNamespace(batch_size=16, accumulate=1))
    evaluator: Any = SimpleNamespace(
        job=job, world=1, batches=lambda split, most, size: iter(batches), device=torch.device("cpu")
    )
    begun = adapter_beginnings(model, "fp32", evaluator, world=1)
    load_weights(model, {**trained_tensors(model), **begun})


def _train(model: FusedModel, job: Any, batch: Batch) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(job, model))
    required = [name for name, options in job.inputs.items() if not options.optional]
    for chosen in [batch] * STEPS + ([batch.subset(required)] if required else []):
        optimizer.zero_grad()
        loss = model.total_loss(model.losses(model(chosen), chosen), chosen)
        assert torch.isfinite(loss), loss
        loss.backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, f"no gradient on some rank would hang the others: {unused[:3]}"
        optimizer.step()


@torch.no_grad()
def _compare(folder: Path, job: Any, model: FusedModel, batch: Batch) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
    save_model(folder / "model", job, weights, {})
    _, loaded = load_model(folder / "model")
    wanted, found = model(batch), loaded(batch)
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, equal_nan=True)
