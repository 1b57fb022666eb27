"""Sizes, activations and optimizer state on fake tensors compared with real ones."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch

from rayfuse.data.collate import Batch
from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import make_synthetic_batch, sample_bytes
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.training.optimizers import build_optimizer
from rayfuse.training.param_groups import build_param_groups
from rayfuse.training.precision import cast_frozen_weights

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
    assert sizes.trainable == bytes_of(trained.values()) < sizes.weights
    assert sizes.param_groups == [bytes_of(group["params"]) for group in build_param_groups(job, model)]
    assert sizes.largest_parameter == max(bytes_of([parameter]) for parameter in trained.values())
    of_text = next(part for part in sizes.modules if part.name == "encoder text")
    assert of_text.num_parameters == sum(p.numel() for p in model.encoders["text"].parameters())
    assert of_text.num_trainable == sum(
        p.numel() for n, p in trained.items() if n.startswith("encoders.text.")
    )


@pytest.mark.parametrize(("precision", "divided"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_activations_are_what_autograd_saves(precision: str, divided: bool, tmp_path: Path) -> None:
    job = lora(tmp_path)
    model, batch = FusedModel(job).train(), make_synthetic_batch(job, ROWS)
    if not divided:
        cast_frozen_weights(model, precision)
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
    saved_bytes = simulation.simulate_step(ROWS).saved_activations
    assert wanted <= saved_bytes <= 1.05 * wanted  # in addition: the batch, outputs and losses


def test_the_peak_of_a_step_is_what_torch_allocates(tmp_path: Path) -> None:
    encoder = {
        "type": "transformer",
        "hidden_size": 32,
        "layers": 2,
        "heads": 2,
    }  # oneDNN needs more for convolutions
    job = fitted_job(tmp_path, inputs={"text": {"type": "text", "max_tokens": 16, "encoder": encoder}})
    model, batch = FusedModel(job).train(), make_synthetic_batch(job, ROWS)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        forward(model, batch).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    simulation = Simulation(job, "fp32")
    step = simulation.simulate_step(ROWS)
    of_batch = bytes_of(t for part in batch.inputs.values() for t in (part.features or {}).values())
    assert step.peak_total.total - of_batch == pytest.approx(peak, rel=0.01)
    assert step.peak_activations.activations <= step.peak_total.total
    assert 0 < simulation.simulate_evaluation(ROWS) < step.saved_activations


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor", "lion", "muon"])
def test_optimizer_state_is_that_of_the_real_optimizer(kind: str, tmp_path: Path) -> None:
    options = {"train.optimizer": {"type": kind}, "train.deepspeed": {"stage": 0}}
    job = fitted_job(tmp_path, **options)
    model = FusedModel(job)
    optimizer = build_optimizer(job.train.optimizer, build_param_groups(job, model))
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    wanted = bytes_of(t for state in optimizer.state.values() for t in state.values())
    assert Simulation(job, "fp32").simulate_optimizer(None).state == wanted


def test_optimizer_on_shards_of_flat_groups(tmp_path: Path) -> None:
    simulation = Simulation(fitted_job(tmp_path), "fp32")
    flat = simulation.simulate_optimizer(2)
    assert flat.state == pytest.approx(simulation.sizes().trainable, rel=0.01)  # half of two moments
    assert flat.flat_gradients == pytest.approx(max(simulation.sizes().param_groups) / 2, abs=16)
    assert flat.workspace == 0  # torch's fused kernel needs none


@pytest.mark.parametrize(
    "overrides",
    [
        {"inputs.text.encoder": {"type": "gru", "hidden_size": 8}, "inputs.text.max_tokens": 4},
        {"inputs.text.encoder": {"type": "lstm", "hidden_size": 8}, "inputs.text.max_tokens": 4},
        {"align": {"type": "linear", "dim": 16, "loss": {"type": "contrastive"}}, "fusion": {"type": "gated"}},
        {"tasks": {"find": {"type": "retrieval", "inputs": ["image", "text"], "dim": 8}},
         "train.early_stopping": None},
        {"train.subset_loss": {"sampling": "random"}, "fusion": {"type": "transformer", "layers": 1, "heads": 2}},
        {"train.mixup": {"alpha": 0.2}},
    ],
    ids=["gru", "lstm", "contrastive", "retrieval", "subsets", "mixup"],
)  # fmt: skip
def test_parts_that_depend_on_values(overrides: dict[str, Any], tmp_path: Path) -> None:
    step = Simulation(fitted_job(tmp_path, **overrides), "fp32").simulate_step(4)
    assert step.flops > 0
    assert step.peak_total.total >= step.saved_activations > 0


def test_activation_checkpointing_saves_memory_and_computes_more(tmp_path: Path) -> None:
    encoder = {"type": "transformer", "hidden_size": 32, "layers": 3, "heads": 2}
    inputs = {"text": {"type": "text", "max_tokens": 16, "encoder": encoder}}
    plain, checkpointed = (
        Simulation(fitted_job(tmp_path, inputs=inputs, **more), "fp32").simulate_step(ROWS)
        for more in ({}, {"train.activation_checkpointing": True})
    )
    assert checkpointed.saved_activations < 0.5 * plain.saved_activations
    assert checkpointed.peak_activations.total < plain.peak_activations.total
    assert 1.2 * plain.flops < checkpointed.flops < 1.4 * plain.flops


def test_cost_is_proportional_to_rows(tmp_path: Path) -> None:
    simulation = Simulation(fitted_job(tmp_path), "fp32")
    small, large = simulation.simulate_step(4), simulation.simulate_step(8)
    assert large.saved_activations == pytest.approx(2 * small.saved_activations, rel=0.01)
    assert large.flops == 2 * small.flops


@pytest.mark.parametrize("beside_n_grams", [False, True])
def test_a_cached_encoder_does_not_run_in_a_step(beside_n_grams: bool, tmp_path: Path) -> None:
    bert = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert"))}
    encoder = {"type": "ngrams", "hidden_size": 8, "pretrained": bert} if beside_n_grams else bert
    job = fitted_job(tmp_path, **{"inputs.text.encoder": encoder})
    off = job.model_copy(update={"data": job.data.model_copy(update={"feature_cache": "off"})})
    cached, each_time = (Simulation(chosen, "fp32") for chosen in (job, off))
    assert cached.sizes() == each_time.sizes()
    assert cached.simulate_step(ROWS).flops < each_time.simulate_step(ROWS).flops
    assert cached.simulate_evaluation(64) < each_time.simulate_evaluation(64)
    assert sample_bytes(job) < sample_bytes(off)
