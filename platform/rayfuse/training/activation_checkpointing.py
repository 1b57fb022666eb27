"""Activation checkpointing: recompute activations in the backward pass instead of storing them (Chen et al., 2016)."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayfuse.errors import SpecError
from rayfuse.model.fusion.layers import AttentionLayer
from rayfuse.model.gated_attention import GatedLayer

_BUILTIN_LAYERS = (nn.TransformerEncoderLayer, AttentionLayer, GatedLayer)


def checkpoint_activations(model: nn.Module) -> None:
    """Enable activation checkpointing in every trained Transformer layer of the model.

    Outputs, gradients and random numbers stay the same. Raises SpecError if the model has no such layer.
    """
    found = [_checkpoint_pretrained(module) or _checkpoint_builtin(module) for module in model.modules()]
    if not any(found):
        raise SpecError(
            "train.activation_checkpointing: no trained part of the model is a Transformer that supports it; "
            "remove train.activation_checkpointing"
        )


def _checkpoint_pretrained(module: nn.Module) -> bool:
    from transformers import PreTrainedModel

    if (
        not isinstance(module, PreTrainedModel)
        or not module.supports_gradient_checkpointing
        or not _has_trainable_parameters(module)
    ):
        return False
    module.gradient_checkpointing_enable({"use_reentrant": False})
    if hasattr(module, "_require_grads_hook"):
        module.disable_input_require_grads()  # for reentrant checkpoints only; it extends the backward pass to frozen layers
    return True


def _checkpoint_builtin(module: nn.Module) -> bool:
    if not isinstance(module, _BUILTIN_LAYERS) or not _has_trainable_parameters(module):
        return False
    module.forward = partial(_checkpointed_forward, module, module.forward)  # type: ignore[method-assign]
    return True


def _checkpointed_forward(module: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
    if module.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    return forward(*inputs, **options)


def _has_trainable_parameters(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
