"""Metrics of a step over all workers."""

from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.training.step_metrics import MetricReducer, StepPosition

CPU = torch.device("cpu")
PLACE = StepPosition(epoch=0, step_in_epoch=0, step=1, lr=0.01)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_jobs.tiny_job(tmp_path_factory.mktemp("meter"))


def batch_of(mask: list[list[int]], rows: int = 2, present: bool = True) -> Batch:
    """Make a batch of texts of the given masks, and images, which have no length."""
    index = torch.zeros(rows, 1, dtype=torch.int64) - (0 if present else 1)
    text = EncoderBatch({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor(mask)}, index)
    image = EncoderBatch({"pixel_values": torch.zeros(1, 3, 8, 8)}, index)
    return Batch({"image": image, "text": text}, {}, torch.ones(rows))


BATCH = batch_of([[1, 1, 1], [1, 0, 0]])


def test_a_step_is_returned_one_step_later(job: Any) -> None:
    meter = MetricReducer(job, CPU)
    parts = {"answer": torch.tensor(6.0)}
    assert meter.update(PLACE, [BATCH, BATCH], torch.tensor(8.0), parts, torch.tensor(0.5), 0.25) is None
    later = StepPosition(0, 1, 2, 0.02)
    first = meter.update(later, [BATCH], torch.tensor(2.0), {}, None, 0.75)
    assert first is not None
    assert (first.position, first.rows, first.loss, first.loss_terms) == (PLACE, 4, 2.0, {"answer": 1.5})
    assert (first.gradient_norm, first.data_wait_seconds, first.rank_losses) == (0.5, 0.25, (8.0,))
    assert first.tokens == {"text": (8, 12)}
    second = meter.flush()
    assert second is not None
    assert (second.position, second.loss, second.gradient_norm, second.data_wait_seconds) == (
        later,
        1.0,
        None,
        0.75,
    )
    assert second.loss_terms == {"answer": 0.0}
    assert meter.flush() is None


def test_dummy_values_and_input_subsets_do_not_count(job: Any) -> None:
    meter = MetricReducer(job, CPU)
    views = Batch(BATCH.inputs, {}, torch.tensor([1.0, 0.5]), source_index=torch.tensor([0, 0]))
    blank = batch_of([[1, 0, 0], [1, 0, 0]], present=False)
    meter.update(PLACE, [views, blank], torch.tensor(3.0), {}, 1.0, 0.0)
    measured = meter.flush()
    assert measured is not None
    assert (measured.rows, measured.tokens) == (3, {"text": (4, 6)})


def test_metrics_are_reduced_over_workers(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([float("nan"), 2.0, 5.0, 0.0, 1.5, 0.0, 0.0, 10.0, 20.0], dtype=torch.float64)

    def gather(together: torch.Tensor, mine: torch.Tensor, async_op: bool) -> Any:
        def wait() -> None:
            together.copy_(torch.cat([mine, other]))

        assert async_op
        return type("Work", (), {"wait": staticmethod(wait)})

    monkeypatch.setattr(torch.distributed, "all_gather_single", gather)
    meter = MetricReducer(job, CPU, world_size=2)
    meter.update(PLACE, [BATCH], torch.tensor(3.0), {"answer": torch.tensor(3.0)}, 2.0, 0.5)
    measured = meter.flush()
    assert measured is not None
    assert measured.loss != measured.loss
    assert measured.suspect_ranks == [1]
    assert (measured.rows, measured.loss_terms, measured.gradient_norm) == (2, {"answer": 4.0}, 2.0)
    assert (measured.data_wait_seconds, measured.tokens) == (1.5, {"text": (14, 26)})


def test_all_ranks_are_suspect_if_every_loss_is_finite(job: Any) -> None:
    meter = MetricReducer(job, CPU)
    meter.update(PLACE, [BATCH], torch.tensor(3.0), {}, float("inf"), 0.0)
    measured = meter.flush()
    assert measured is not None
    assert measured.suspect_ranks == [0]
    assert measured.gradient_norm == float("inf")
