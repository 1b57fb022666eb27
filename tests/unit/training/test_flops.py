"""FLOPs of training and peak FLOP/s of GPUs."""

import pytest
import torch

from rayfuse.training.flops import FlopCount, device_peak_flops, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("AMD Instinct MI300X", 1307e12), ("cpu", None),
    ],
)  # fmt: skip
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_cpu_has_no_peak() -> None:
    assert device_peak_flops(torch.device("cpu")) is None


def test_forward_and_backward_are_counted_at_powers_of_two() -> None:
    count = FlopCount()
    layer = torch.nn.Linear(10, 10, bias=False)
    for rows in (4, 6, 100, 10):  # the third is not counted
        batch = type("Batch", (), {"is_full": torch.ones(rows, dtype=torch.bool)})
        with count.count_step([batch]):
            layer(torch.ones(rows, 10)).sum().backward()
    assert count.per_row == 2 * 2 * 10 * 10  # the product, and that of the weights' gradient
    assert FlopCount().per_row == 0
