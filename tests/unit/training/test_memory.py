"""Peak memory of the test process."""

import os
import subprocess
import sys

import pytest
import torch

from rayfuse.training import memory
from rayfuse.training.memory import PeakMemory, peak_resident_bytes, resident_bytes
from rayfuse.training.precision import supports_bf16

SIZE = 64_000_000


def test_a_peak_is_reported_after_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "preload_libraries", lambda libraries: None)
    peak = PeakMemory(torch.device("cpu"))
    assert peak.baseline_bytes > 10_000_000
    torch.ones(SIZE // 4).sum()
    report = peak.to_dict()
    assert report["peak_bytes"] >= report["baseline_bytes"] + 0.9 * SIZE
    assert report["on_gpu"] is False
    assert resident_bytes() < peak_resident_bytes()


def test_an_earlier_peak_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "preload_libraries", lambda libraries: None)
    torch.ones(SIZE).sum()
    peak = PeakMemory(torch.device("cpu"))
    assert peak.peak_bytes() < peak.baseline_bytes + SIZE


KERNELS = """
import torch
from rayfuse.training import memory
memory.limit_kernel_caches()
torch.set_num_threads(1)
layer = torch.nn.Linear(384, 1536)
def run(rows):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(rows, 384)).sum().backward()
run(3)
memory.release_free_memory()
before = memory.resident_bytes()
for rows in range(4, 300):
    run(rows)
memory.release_free_memory()
print(memory.resident_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not supports_bf16(torch.device("cpu")), reason="oneDNN has kernels for each shape in bf16"
)
def test_kernels_of_batches_of_many_lengths_are_limited() -> None:
    unlimited = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
    default, limited = (
        int(
            subprocess.run(
                [sys.executable, "-c", KERNELS], env={**os.environ, **more}, check=True, capture_output=True
            ).stdout
        )
        for more in (unlimited, {})
    )
    assert limited < default / 3


def test_systems_without_procfs(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    known = resident_bytes()
    monkeypatch.setattr(memory, "_STATUS", memory.Path("/nowhere"))
    assert resident_bytes() == pytest.approx(known, rel=0.2)
    assert peak_resident_bytes() >= 0.8 * known
