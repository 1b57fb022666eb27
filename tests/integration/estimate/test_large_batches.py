"""Batches that are extrapolated from smaller ones."""

from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows
from rayfuse.estimate.large_batches import ScalableSimulation
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import features_bytes


def test_extrapolated_costs_are_those_of_a_simulation(tmp_path: Path) -> None:
    job = tiny_jobs.tiny_job(tmp_path)
    job = fit(job, read_job_rows(job.data.train, job)[0])
    simulation = Simulation(job, "fp32")
    scalable = ScalableSimulation(simulation, 8 * features_bytes(job))
    expected, found = simulation.simulate_step(64), scalable.simulate_step(64)
    assert found.rows == 64
    assert found.saved_activations == pytest.approx(expected.saved_activations, rel=0.02)
    assert found.peak_total.total == pytest.approx(expected.peak_total.total, rel=0.02)
    assert found.flops == pytest.approx(expected.flops, rel=0.02)
    assert scalable.simulate_evaluation(64) == pytest.approx(simulation.simulate_evaluation(64), rel=0.02)
    assert scalable.simulate_step(8) == simulation.simulate_step(8)
