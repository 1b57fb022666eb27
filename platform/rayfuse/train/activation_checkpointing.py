"""Activations of Transformer layers are computed anew in the backward pass instead of kept (Chen et al., 2016)."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayfuse.errors import SpecError
from rayfuse.model.fusion.parts import AttentionLayer


def checkpoint_activations(model: nn.Module) -> None:
    """Make the layers of the model's Transformers forget what they computed until the backward pass.

    Random numbers are drawn as before, and outputs and gradients stay the same. Raises SpecError where the model has
    no such layer that is trained.
    """
    found = [_checkpoint_pretrained(module) or _checkpoint_own(module) for module in model.modules()]
    if not any(found):
        raise SpecError(
            "train.activation_checkpointing: no trained part of the model is a Transformer that can compute its "
            "layers anew; leave it out"
        )


def _checkpoint_pretrained(module: nn.Module) -> bool:
    from transformers import PreTrainedModel

    if (
        not isinstance(module, PreTrainedModel)
        or not module.supports_gradient_checkpointing
        or not _trains(module)
    ):
        return False
    module.activation_checkpointing_enable({"use_reentrant": False})
    if hasattr(module, "_require_grads_hook"):
        module.disable_input_require_grads()  # only reentrant checkpoints need it: it sends gradients through frozen layers
    return True


def _checkpoint_own(module: nn.Module) -> bool:
    if not isinstance(module, (nn.TransformerEncoderLayer, AttentionLayer)) or not _trains(module):
        return False
    module.forward = partial(_forgetful, module, module.forward)  # type: ignore[method-assign]
    return True


def _forgetful(module: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
    if module.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    return forward(*inputs, **options)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
