"""Peak memory of the test process."""

import pytest
import torch

from rayfuse.training import memory
from rayfuse.training.memory import PeakMemory, peak_resident_bytes, resident_bytes

SIZE = 64_000_000


def test_a_peak_is_reported_after_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "preload_libraries", lambda: None)
    peak = PeakMemory(torch.device("cpu"))
    assert peak.baseline_bytes > 10_000_000
    torch.ones(SIZE // 4).sum()
    report = peak.to_dict()
    assert report["peak_bytes"] >= report["baseline_bytes"] + 0.9 * SIZE
    assert report["on_gpu"] is False
    assert resident_bytes() < peak_resident_bytes()


def test_an_earlier_peak_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "preload_libraries", lambda: None)
    torch.ones(SIZE).sum()
    peak = PeakMemory(torch.device("cpu"))
    assert peak.peak_bytes() < peak.baseline_bytes + SIZE


def test_systems_without_procfs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    known = resident_bytes()
    monkeypatch.setattr(memory, "_STATUS", memory.Path("/nowhere"))
    assert resident_bytes() == pytest.approx(known, rel=0.2)
    assert peak_resident_bytes() >= 0.8 * known
