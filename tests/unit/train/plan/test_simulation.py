"""Sizes, activations and optimizer state on fake tensors beside the same on real ones."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch

from rayfuse.data.batches import Batch
from rayfuse.data.dataset import fit
from rayfuse.data.reading import read_job_rows
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.train.groups import parameter_groups
from rayfuse.train.optimizers import build_optimizer
from rayfuse.train.plan.simulation import Simulation
from rayfuse.train.plan.typical import sample_bytes, typical_batch
from rayfuse.train.precision import round_frozen

ROWS = 16


def fitted_job(folder: Path, **overrides: Any) -> Any:
    job = tiny_jobs.tiny_job(folder, **overrides)
    return fit(job, read_job_rows(job.data.train, job)[0])


def lora(folder: Path) -> Any:
    encoder = {"type": "huggingface", "model": str(tiny_encoders.bert(folder / "bert")), "train": "lora"}
    return fitted_job(folder, **{"inputs.text.encoder": encoder})


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def forward(model: FusedModel, batch: Batch) -> torch.Tensor:
    return model.total_loss(model.losses(model(batch), batch), batch)


def test_sizes_are_those_of_the_real_model(tmp_path: Path) -> None:
    job = lora(tmp_path)
    model, sizes = FusedModel(job), Simulation(job, "fp32").sizes()
    trained = trainable_parameters(model)
    assert sizes.weights == bytes_of(model.parameters())
    assert sizes.buffers == bytes_of(model.buffers())
    assert sizes.trained == bytes_of(trained.values()) < sizes.weights
    assert sizes.groups == [bytes_of(group["params"]) for group in parameter_groups(job, model)]
    assert sizes.largest == max(bytes_of([parameter]) for parameter in trained.values())
    of_text = next(part for part in sizes.parts if part.name == "encoder text")
    assert of_text.total == sum(p.numel() for p in model.encoders["text"].parameters())
    assert of_text.trained == sum(p.numel() for n, p in trained.items() if n.startswith("encoders.text."))


@pytest.mark.parametrize(("precision", "divided"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_activations_are_what_autograd_saves(precision: str, divided: bool, tmp_path: Path) -> None:
    job = lora(tmp_path)
    model, batch = FusedModel(job).train(), typical_batch(job, ROWS)
    if not divided:
        round_frozen(model, precision)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(batch)
        model.total_loss(model.losses(outputs, batch), batch)
    wanted = sum(storage.nbytes() for storage in saved.values())
    simulation = Simulation(job, precision, divided)
    assert simulation.sizes().weights == bytes_of(model.parameters())
    kept = simulation.step(ROWS).kept
    assert wanted <= kept <= 1.05 * wanted  # what is kept beside: the batch, outputs and losses


def test_the_most_that_a_step_needs_is_what_torch_allocates(tmp_path: Path) -> None:
    encoder = {
        "type": "transformer",
        "width": 32,
        "layers": 2,
        "heads": 2,
    }  # oneDNN needs more for convolutions
    job = fitted_job(tmp_path, inputs={"text": {"type": "text", "max_tokens": 16, "encoder": encoder}})
    model, batch = FusedModel(job).train(), typical_batch(job, ROWS)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        forward(model, batch).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    simulation = Simulation(job, "fp32")
    step = simulation.step(ROWS)
    of_batch = bytes_of(t for part in batch.inputs.values() for t in (part.features or {}).values())
    assert step.most_together.total - of_batch == pytest.approx(most, rel=0.01)
    assert step.most_activations.activations <= step.most_together.total
    assert 0 < simulation.evaluation(ROWS) < step.kept


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor", "lion", "muon"])
def test_optimizer_state_is_that_of_the_real_optimizer(kind: str, tmp_path: Path) -> None:
    options = {"train.optimizer": {"type": kind}, "train.deepspeed": {"stage": 0}}
    job = fitted_job(tmp_path, **options)
    model = FusedModel(job)
    optimizer = build_optimizer(job.train.optimizer, parameter_groups(job, model))
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    wanted = bytes_of(t for state in optimizer.state.values() for t in state.values())
    assert Simulation(job, "fp32").optimizer(None).state == wanted


def test_optimizer_on_parts_of_flat_groups(tmp_path: Path) -> None:
    simulation = Simulation(fitted_job(tmp_path), "fp32")
    flat = simulation.optimizer(2)
    assert flat.state == pytest.approx(simulation.sizes().trained, rel=0.01)  # half of two moments
    assert flat.flat == pytest.approx(max(simulation.sizes().groups) / 2, abs=16)
    assert flat.workspace == 0  # torch's fused kernel needs none


@pytest.mark.parametrize(
    "overrides",
    [
        {"inputs.text.encoder": {"type": "gru", "width": 8}, "inputs.text.max_tokens": 4},
        {"inputs.text.encoder": {"type": "lstm", "width": 8}, "inputs.text.max_tokens": 4},
        {"align": {"type": "linear", "dim": 16, "loss": {"type": "contrastive"}}, "fusion": {"type": "gated"}},
        {"tasks": {"find": {"type": "retrieval", "inputs": ["image", "text"], "dim": 8}},
         "train.early_stopping": None},
        {"train.subset_loss": {"draw": "random"}, "fusion": {"type": "transformer", "layers": 1, "heads": 2}},
        {"train.mixup": {"alpha": 0.2}},
    ],
    ids=["gru", "lstm", "contrastive", "retrieval", "subsets", "mixup"],
)  # fmt: skip
def test_parts_that_look_at_values(overrides: dict[str, Any], tmp_path: Path) -> None:
    step = Simulation(fitted_job(tmp_path, **overrides), "fp32").step(4)
    assert step.flops > 0
    assert step.most_together.total >= step.kept > 0


def test_activation_checkpointing_keeps_less_and_computes_more(tmp_path: Path) -> None:
    encoder = {"type": "transformer", "width": 32, "layers": 3, "heads": 2}
    inputs = {"text": {"type": "text", "max_tokens": 16, "encoder": encoder}}
    plain, forgetful = (
        Simulation(fitted_job(tmp_path, inputs=inputs, **more), "fp32").step(ROWS)
        for more in ({}, {"train.activation_checkpointing": True})
    )
    assert forgetful.kept < 0.5 * plain.kept
    assert forgetful.most_activations.total < plain.most_activations.total
    assert 1.2 * plain.flops < forgetful.flops < 1.4 * plain.flops


def test_more_rows_and_longer_texts_take_more(tmp_path: Path) -> None:
    simulation = Simulation(fitted_job(tmp_path), "fp32")
    small, large = simulation.step(4), simulation.step(8)
    assert large.kept == pytest.approx(2 * small.kept, rel=0.01)
    assert large.flops == 2 * small.flops


def test_a_cached_encoder_does_not_run_in_a_step(tmp_path: Path) -> None:
    encoder = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert"))}
    job = fitted_job(tmp_path, **{"inputs.text.encoder": encoder})
    off = job.model_copy(update={"data": job.data.model_copy(update={"cache": "off"})})
    cached, each_time = (Simulation(chosen, "fp32") for chosen in (job, off))
    assert cached.sizes() == each_time.sizes()
    assert cached.step(ROWS).flops < each_time.step(ROWS).flops
    assert cached.evaluation(64) < each_time.evaluation(64)
    assert sample_bytes(job) < sample_bytes(off)
