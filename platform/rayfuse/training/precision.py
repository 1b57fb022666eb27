"""Choose the precision of training from what the hardware supports."""

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.language_model import LanguageModel

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""torch dtypes by the names in `train.precision`."""


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Return the precision to train in, and the reason. `auto` chooses bf16 only where it is not emulated.

    Raises SpecError for fp16 on a CPU, where it is not available.
    """
    has_bf16 = supports_bf16(device)
    if wanted == "auto":
        chosen = "bf16" if has_bf16 else "fp32"
        return chosen, f"auto: this {device.type} {'supports' if has_bf16 else 'does not support'} bf16"
    if wanted == "fp16" and device.type == "cpu":
        raise SpecError("train.precision: fp16 needs a GPU; use auto, bf16 or fp32 on a CPU")
    if wanted == "bf16" and not has_bf16:
        return (
            wanted,
            f"set in the job, but this {device.type} only emulates bf16 and will be many times slower",
        )
    return wanted, "set in the job"


def cast_frozen_weights(model: nn.Module, precision: str) -> None:
    """Cast the frozen linear layers of pretrained models to the dtype that autocast uses.

    Autocast would round them to the same values at every use. Model folders have the weights as they were loaded.
    """
    if precision == "fp32":
        return
    for encoder in model.modules():
        if isinstance(encoder, (HuggingFaceEncoder, LanguageModel)):
            for linear in encoder.frozen_linear_layers():
                linear.to(DTYPES[precision])


def supports_bf16(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions: AMX or AVX-512 BF16 on x86, BF16 on Arm, or a GPU's."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16", "bf16", "arm_bf16"))
