"""Activation checkpointing changes neither outputs nor gradients, and stores less."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch

from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import SpecError
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.training.activation_checkpointing import checkpoint_activations


def passes(
    job: Any, rows: list[Any], checkpointing: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """Return loss and gradients, the next random numbers, and the bytes other than weights that were kept for the backward pass."""
    torch.manual_seed(0)
    model = FusedModel(job).train()
    if checkpointing:
        checkpoint_activations(model)
    preprocessor = Preprocessor(job.inputs, job.tasks)
    batch = collate([preprocessor.from_row(row) for row in rows], preprocessor.modalities)
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes * (tensor.untyped_storage().data_ptr() not in weights)
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model.total_loss(model.losses(model(batch), batch), batch)
    loss.backward()
    gradients = {
        name: part.grad for name, part in trainable_parameters(model).items() if part.grad is not None
    }
    return {"loss": loss.detach(), **gradients}, torch.rand(3), kept


def bert(folder: Path, **options: Any) -> dict[str, Any]:
    return {"type": "huggingface", "model": str(tiny_encoders.bert(folder / "bert")), **options}


@pytest.mark.parametrize(
    ("encoder", "fusion"),
    [
        (
            {"type": "transformer", "hidden_size": 16, "layers": 2, "dropout": 0.3},
            {"type": "concat", "hidden": 16},
        ),
        ({"type": "conv", "hidden_size": 4}, {"type": "transformer", "layers": 2, "dropout": 0.3}),
        ("lora", {"type": "concat", "hidden": 16}),
        ("full", {"type": "concat", "hidden": 16}),
    ],
)
def test_gradients_are_the_same_with_less_memory(
    encoder: Any, fusion: dict[str, Any], tmp_path: Path
) -> None:
    encoder = encoder if isinstance(encoder, dict) else bert(tmp_path, train=encoder)
    text = {"type": "text", "max_tokens": 32, "encoder": encoder}
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, inputs={"text": text}, fusion=fusion))
    rows = dataset.splits["train"][:8]
    kept, after, much = passes(job, rows, checkpointing=False)
    recomputed, after_too, little = passes(job, rows, checkpointing=True)
    torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-7)
    assert torch.equal(after, after_too)
    assert little < 0.6 * much


def test_frozen_layers_stay_out_of_the_backward_pass(tmp_path: Path) -> None:
    encoder = bert(tmp_path, train="lora", lora={"r": 2, "last_n_layers": 1})
    job, _ = load_dataset(tiny_jobs.tiny_job(tmp_path, **{"inputs.text.encoder": encoder}))
    model = FusedModel(job).train()
    checkpoint_activations(model)
    embeddings = next(module for name, module in model.named_modules() if name.endswith("word_embeddings"))
    assert not embeddings(torch.tensor([[1]])).requires_grad


@pytest.mark.parametrize("train", [None, "frozen"])
def test_a_model_without_trained_transformers_is_rejected(train: str | None, tmp_path: Path) -> None:
    encoder = bert(tmp_path, train=train) if train else {"type": "conv", "hidden_size": 4}
    job, _ = load_dataset(tiny_jobs.tiny_job(tmp_path, **{"inputs.text.encoder": encoder}))
    with pytest.raises(
        SpecError,
        match=r"train.activation_checkpointing: no trained part .* remove train.activation_checkpointing",
    ):
        checkpoint_activations(FusedModel(job))
