"""Prompts of generation tasks on fake tensors, whose values cannot be read."""

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.generation import GenerationHead
from rayfuse.model.tokens import FusedState


def assume_full_prompts(head: nn.Module) -> None:
    """Replace what a head reads from tensors: every sample has all soft tokens, and texts and replies of maximum length.

    Other modules are unchanged.
    """
    if not isinstance(head, GenerationHead):
        return

    def span_masks(fused: FusedState) -> dict[str, np.ndarray]:
        masks = {name: layout.span_tokens(fused, name)[1] for name in head.renderer.span_inputs}
        return {name: np.ones(tuple(mask.shape), dtype=bool) for name, mask in masks.items()}

    def prompt_texts(fused: FusedState) -> list[dict[str, str]]:
        return [head.renderer.longest_texts()] * len(fused["vector"])

    def tokens(targets: torch.Tensor) -> list[list[int]]:
        inside = 1 if head.renderer.end_id == 0 else 0
        return [[inside] * (targets.shape[1] - head.group_width)] * len(targets)

    layout = head.reading.layout
    layout.span_masks, layout.texts, head._tokens = span_masks, prompt_texts, tokens  # type: ignore[method-assign]
