"""Choice of the precision by hardware."""

from typing import Any

import pytest
import torch

from rayfuse.errors import SpecError
from rayfuse.training.precision import choose_precision, supports_bf16

CPU = torch.device("cpu")


@pytest.fixture
def cpu_that(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_capabilities(**capabilities: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return set_capabilities


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_bf16_on_cpus(capabilities: dict[str, bool], computes: bool, cpu_that: Any) -> None:
    cpu_that(**capabilities)
    assert supports_bf16(CPU) is computes
    chosen, why = choose_precision("auto", CPU)
    assert chosen == ("bf16" if computes else "fp32")
    assert why == f"auto: this cpu {'supports' if computes else 'does not support'} bf16"


def test_the_precision_of_the_job_is_used(cpu_that: Any) -> None:
    cpu_that()
    assert choose_precision("fp32", CPU) == ("fp32", "set in the job")
    assert choose_precision("bf16", CPU) == (
        "bf16",
        "set in the job, but this cpu only emulates bf16 and will be many times slower",
    )
    with pytest.raises(SpecError, match="train.precision: fp16 needs a GPU; use auto, bf16 or fp32"):
        choose_precision("fp16", CPU)


def test_gpus_do_not_count_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu)[0] == "fp32"
    assert choose_precision("fp16", gpu) == ("fp16", "set in the job")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", gpu)[0] == "bf16"


def test_a_choice_on_this_machine() -> None:
    assert choose_precision("auto", CPU)[0] in ("bf16", "fp32")
