"""What a step measures, over all workers."""

from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.train.meter import Meter, Place

CPU = torch.device("cpu")
PLACE = Place(epoch=0, number=0, step=1, lr=0.01)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_jobs.tiny_job(tmp_path_factory.mktemp("meter"))


def batch_of(mask: list[list[int]], rows: int = 2, present: bool = True) -> Batch:
    """Texts of the given masks, and pictures, which have no length."""
    index = torch.zeros(rows, 1, dtype=torch.int64) - (0 if present else 1)
    text = EncoderBatch({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor(mask)}, index)
    image = EncoderBatch({"pixel_values": torch.zeros(1, 3, 8, 8)}, index)
    return Batch({"image": image, "text": text}, {}, torch.ones(rows))


BATCH = batch_of([[1, 1, 1], [1, 0, 0]])


def test_a_step_is_told_one_step_later(job: Any) -> None:
    meter = Meter(job, CPU)
    parts = {"answer": torch.tensor(6.0)}
    assert meter.put(PLACE, [BATCH, BATCH], torch.tensor(8.0), parts, torch.tensor(0.5), 0.25) is None
    later = Place(0, 1, 2, 0.02)
    first = meter.put(later, [BATCH], torch.tensor(2.0), {}, None, 0.75)
    assert first is not None
    assert (first.place, first.rows, first.loss, first.parts) == (PLACE, 4, 2.0, {"answer": 1.5})
    assert (first.gradient_norm, first.waited, first.losses) == (0.5, 0.25, (8.0,))
    assert first.tokens == {"text": (8, 12)}
    second = meter.flush()
    assert second is not None
    assert (second.place, second.loss, second.gradient_norm, second.waited) == (later, 1.0, None, 0.75)
    assert second.parts == {"answer": 0.0}
    assert meter.flush() is None


def test_blank_values_and_views_do_not_count(job: Any) -> None:
    meter = Meter(job, CPU)
    views = Batch(BATCH.inputs, {}, torch.tensor([1.0, 0.5]), source=torch.tensor([0, 0]))
    blank = batch_of([[1, 0, 0], [1, 0, 0]], present=False)
    meter.put(PLACE, [views, blank], torch.tensor(3.0), {}, 1.0, 0.0)
    measured = meter.flush()
    assert measured is not None
    assert (measured.rows, measured.tokens) == (3, {"text": (4, 6)})


def test_workers_bring_their_numbers_together(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor([float("nan"), 2.0, 5.0, 0.0, 1.5, 0.0, 0.0, 10.0, 20.0], dtype=torch.float64)

    def gather(together: torch.Tensor, mine: torch.Tensor, async_op: bool) -> Any:
        def wait() -> None:
            together.copy_(torch.cat([mine, other]))

        assert async_op
        return type("Work", (), {"wait": staticmethod(wait)})

    monkeypatch.setattr(torch.distributed, "all_gather_single", gather)
    meter = Meter(job, CPU, world=2)
    meter.put(PLACE, [BATCH], torch.tensor(3.0), {"answer": torch.tensor(3.0)}, 2.0, 0.5)
    measured = meter.flush()
    assert measured is not None
    assert measured.loss != measured.loss
    assert measured.suspects == [1]
    assert (measured.rows, measured.parts, measured.gradient_norm) == (2, {"answer": 4.0}, 2.0)
    assert (measured.waited, measured.tokens) == (1.5, {"text": (14, 26)})


def test_all_ranks_are_suspects_where_each_has_a_loss(job: Any) -> None:
    meter = Meter(job, CPU)
    meter.put(PLACE, [BATCH], torch.tensor(3.0), {}, float("inf"), 0.0)
    measured = meter.flush()
    assert measured is not None
    assert measured.suspects == [0]
    assert measured.gradient_norm == float("inf")
