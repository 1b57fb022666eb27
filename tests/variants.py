"""Train a job for two steps, save it, load it, and compare; used for every variant of every part."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import load_model, load_weights, save_model
from rayfuse.training.adapter_init import initial_adapter_tensors
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.param_groups import build_param_groups

STEPS = 2


def train_and_reload(folder: Path, job: Any, rows: int = 16) -> tuple[FusedModel, Batch]:
    """Return the trained model of a job, in evaluation mode, and its batch.

    Asserts that training changes parameters, also with a batch without optional inputs, and that outputs differ by at
    most 1e-5 after saving and loading.
    """
    torch.manual_seed(0)
    job, dataset = load_dataset(job)
    preprocessor = Preprocessor(job.inputs, job.tasks)
    batch = collate(
        [preprocessor.from_row(row) for row in dataset.splits["train"][:rows]], preprocessor.modalities
    )
    model = FusedModel(job)
    init_adapters(model, [batch])
    model.train()
    before = {name: tensor.detach().clone() for name, tensor in trainable_state_dict(model).items()}
    train_steps(model, job, batch)
    after = trainable_state_dict(model)
    assert after, "nothing is trained"
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    assert_reload_equal(folder, job, model.eval(), batch)
    return model, batch


def init_adapters(model: FusedModel, batches: Sequence[Batch]) -> None:
    """Initialize adapters from batches, as training does before its first step."""
    job = SimpleNamespace(train=SimpleNamespace(batch_size=16, gradient_accumulation_steps=1))
    evaluator: Any = SimpleNamespace(
        job=job, context=DistributedContext(), batches=lambda split, most, size: iter(batches)
    )
    begun = initial_adapter_tensors(model, "fp32", evaluator)
    load_weights(model, {**trainable_state_dict(model), **begun})


def train_steps(model: FusedModel, job: Any, batch: Batch) -> None:
    optimizer = torch.optim.AdamW(build_param_groups(job, model))
    required = [name for name, options in job.inputs.items() if not options.optional]
    for chosen in [batch] * STEPS + ([batch.select_inputs(required)] if required else []):
        optimizer.zero_grad()
        loss = model.total_loss(model.losses(model(chosen), chosen), chosen)
        assert torch.isfinite(loss), loss
        loss.backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, f"no gradient on some rank would hang the others: {unused[:3]}"
        optimizer.step()


@torch.no_grad()
def assert_reload_equal(folder: Path, job: Any, model: FusedModel, batch: Batch) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in trainable_state_dict(model).items()}
    save_model(folder / "model", job, weights, {})
    _, loaded = load_model(folder / "model")
    wanted, found = model(batch).tasks, loaded(batch).tasks
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, equal_nan=True)
