"""Choose the number format that the hardware computes in."""

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision to train in, and why. `auto` takes bf16 only where it is not emulated.

    Raises SpecError for fp16 on a CPU, which cannot train in it.
    """
    computes = computes_bf16(device)
    if wanted == "auto":
        chosen = "bf16" if computes else "fp32"
        return chosen, f"auto: this {device.type} {'computes' if computes else 'does not compute'} in bf16"
    if wanted == "fp16" and device.type == "cpu":
        raise SpecError("train.precision: fp16 needs a GPU; use auto, bf16 or fp32 on a CPU")
    if wanted == "bf16" and not computes:
        return (
            wanted,
            f"asked for, though this {device.type} only emulates bf16 and will be many times slower",
        )
    return wanted, "asked for"


def round_frozen(model: nn.Module, precision: str) -> None:
    """Keep the frozen weights of pretrained encoders' linear maps in the format in which autocast uses them.

    It would round them at every use, to the same numbers. Model folders hold the weights as they were read.
    """
    if precision == "fp32":
        return
    for encoder in model.modules():
        if isinstance(encoder, HuggingFaceEncoder):
            for linear in encoder.frozen_linears():
                linear.to(DTYPES[precision])


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 has instructions of its own: AMX or AVX-512 BF16 on x86, BF16 on Arm, or a GPU's cores."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "bf16", "arm_bf16"))
