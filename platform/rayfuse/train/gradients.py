"""The norm of the whole gradient, before it is clipped."""

from typing import Any

import torch


def keep_gradient_norm(engine: Any) -> None:
    """Without ZeRO, DeepSpeed clips and forgets the norm; and it makes a GPU wait for every single parameter."""
    if engine.zero_optimization_stage():
        return

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(
            engine.module.parameters(), engine.gradient_clipping()
        )

    engine.clip_fp32_gradients = clip


def gradient_norm(engine: Any) -> torch.Tensor | float | None:
    """Of the last optimizer step, the same on every rank; None where nobody computed it: ZeRO stage 0 without clipping."""
    norm: torch.Tensor | float | None = engine.get_global_grad_norm()
    return norm
