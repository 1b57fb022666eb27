"""The peak of this very process."""

import pytest
import torch

from rayfuse.train import memory
from rayfuse.train.memory import PeakMemory, peak_resident, resident

SIZE = 64_000_000


def test_a_peak_is_seen_after_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "load_libraries", lambda: None)
    peak = PeakMemory(torch.device("cpu"))
    assert peak.baseline > 10_000_000
    torch.ones(SIZE // 4).sum()
    told = peak.told()
    assert told["peak_bytes"] >= told["baseline_bytes"] + 0.9 * SIZE
    assert told["on_gpu"] is False
    assert resident() < peak_resident()


def test_an_earlier_peak_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "load_libraries", lambda: None)
    torch.ones(SIZE).sum()
    peak = PeakMemory(torch.device("cpu"))
    assert peak.bytes() < peak.baseline + SIZE


def test_systems_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    known = resident()
    monkeypatch.setattr(memory, "_STATUS", memory.Path("/nowhere"))
    assert resident() == pytest.approx(known, rel=0.2)
    assert peak_resident() >= 0.8 * known
