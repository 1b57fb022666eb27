"""Memory of a worker under each stage, with small numbers that are added by hand."""

from typing import Any

import pytest

from rayfuse.estimate.layouts import WorkerFootprint, offload_names
from rayfuse.estimate.memory_tracker import MemoryPeak
from rayfuse.estimate.simulation import ModelSizes, OptimizerMemory, StepEstimate

FROZEN, TRAINED, GROUP = 600, 400, 300
SIZES = ModelSizes([], FROZEN + TRAINED, 8, TRAINED, [GROUP, 100], 100)
STEP = StepEstimate(4, 90, MemoryPeak(120, 0), MemoryPeak(110, 40), 1, 1)
EVALUATION = 30
CPU = {"offload_optimizer": {"device": "cpu"}}
COPIES = 3 * TRAINED
"""Weights and both moments of the last checkpoint."""
ALWAYS = FROZEN + TRAINED + 8 + COPIES


def worker(stage: int, world: int = 1, gpu: bool = False, **more: Any) -> WorkerFootprint:
    parts = world if stage else 1
    flat = GROUP // parts if stage else 0
    optimizer = OptimizerMemory(2 * TRAINED // parts, flat, 2 * flat or 50)
    zero = {"stage": stage, "reduce_bucket_size": 200, **more.pop("zero", {})}
    options = {"gradient_accumulation_steps": 1, "ema": False, **more}
    return WorkerFootprint(SIZES, STEP, EVALUATION, optimizer, zero, world, on_gpu=gpu, **options)


def totals(found: WorkerFootprint) -> dict[str, int]:
    return {phase.name: phase.total for phase in found.phases()}


def test_stage_0_has_everything_on_every_worker() -> None:
    assert totals(worker(0)) == {
        "forward and backward": ALWAYS + 800 + 150,
        "optimizer step": ALWAYS + 800 + 400 + 50,
        "evaluation": ALWAYS + 800 + 30,
    }
    assert (
        totals(worker(0, world=4))["optimizer step"] == ALWAYS + 800 + 400 + 400
    )  # flat gradients for the reduction


def test_stages_1_and_2_shard_the_optimizer() -> None:
    one, four = totals(worker(2)), totals(worker(2, world=4))
    assert one["forward and backward"] == ALWAYS + 400 + 800 + 150
    assert one["reduction of gradients"] == ALWAYS + 400 + 800 + 400 + 400
    assert one["optimizer step"] == ALWAYS + 400 + 800 + 400 + 3 * 300
    assert four["reduction of gradients"] == ALWAYS + 100 + 200 + 100 + 400 + 300
    assert four["optimizer step"] == ALWAYS + 100 + 200 + 100 + 3 * 75


def test_a_gpu_allocates_whole_buffers_and_a_host_only_written_pages() -> None:
    assert worker(2, gpu=True).phases()[0].device["buffers"] == 800
    assert worker(2).phases()[0].device["buffers"] == 0
    assert worker(2, gpu=True, zero={"overlap_comm": True}).phases()[0].device["buffers"] == 1600


def test_stage_3_shards_weights_and_gathers_them() -> None:
    phases = {phase.name: phase.device for phase in worker(3, world=4).phases()}
    assert phases["forward and backward"]["weights"] == 8 + 250
    assert phases["forward and backward"]["gathered weights"] == 1000
    assert "gathered weights" not in phases["optimizer step"]
    few = worker(3, world=4, zero={"stage3_max_live_parameters": 50, "stage3_prefetch_bucket_size": 0})
    assert few.phases()[0].device["gathered weights"] == 200


def test_offloaded_tensors_are_in_host_memory() -> None:
    phase = worker(2, world=4, gpu=True, zero=CPU).peak_phase()
    assert "optimizer" not in phase.device
    assert phase.host["optimizer"] == 200
    assert phase.host["master weights"] == 100
    both = worker(3, world=4, gpu=True, zero={**CPU, "offload_param": {"device": "cpu"}}).peak_phase()
    assert both.device["weights"] == 8
    assert both.host["weights"] == 250
    assert worker(2, zero=CPU).peak_phase().host == {}  # nothing is offloaded from a CPU


def test_accumulated_gradients_stay_during_the_next_forward_pass() -> None:
    assert worker(0, gradient_accumulation_steps=2).phases()[0].device["gradients"] == TRAINED
    assert worker(0).phases()[0].device["gradients"] == 40


def test_ema_weights() -> None:
    phases = {phase.name: phase.device for phase in worker(0, ema=True).phases()}
    assert phases["optimizer step"]["ema weights"] == TRAINED
    assert phases["evaluation"]["ema weights"] == 2 * TRAINED


@pytest.mark.parametrize(
    ("zero", "name"), [({}, "none"), (CPU, "optimizer"), ({"offload_optimizer": None}, "none")]
)
def test_offload_names(zero: Any, name: str) -> None:
    assert offload_names(zero) == name


def test_checkpoint_copies_are_in_host_memory() -> None:
    assert worker(2, world=4).phases()[0].device["checkpoint"] == COPIES
    on_gpu = worker(2, world=4, gpu=True, ema=True).peak_phase()
    assert on_gpu.host == {"checkpoint": COPIES + TRAINED}
    assert "checkpoint" not in on_gpu.device
