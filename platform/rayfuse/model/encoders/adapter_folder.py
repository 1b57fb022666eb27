"""Adapters of PEFT on disk, as the start of training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayfuse.errors import SpecError
from rayfuse.modalities.pretrained import resolve_adapter_path
from rayfuse.spec.encoders import LoraAdapterConfig

_PEFT_PREFIX = "base_model.model."
_SAME_OPTIONS = ("r", "lora_alpha", "use_dora", "use_rslora")
"""Options with which the weights of an adapter have their meaning."""


def load_adapter(adapted: nn.Module, options: LoraAdapterConfig) -> None:
    """Copy the weights of `options.init_from` into the adapters of a PeftModel.

    The folder may be of a larger model that contains the encoder, such as one with a head; weights of `modules_to_save`
    that the encoder does not train are left out. Raises SpecError if it does not fit, DataError if it cannot be read.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    assert isinstance(adapted, PeftModel)
    assert options.init_from is not None
    folder = resolve_adapter_path(options.init_from)
    _check_options(folder, options)
    own = _weights(adapted)
    found = _match(load_file(folder / "adapter_model.safetensors"), own, options.init_from)
    missing = sorted(own.keys() - found.keys())
    if missing:
        raise SpecError(
            f"lora.init_from: {options.init_from} has no weights for {len(missing)} adapters, such as {missing[0]}; set "
            "lora.target_modules to those of its adapter_config.json"
        )
    set_peft_model_state_dict(adapted, found)


def _check_options(folder: Path, options: LoraAdapterConfig) -> None:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise SpecError(
            f"lora.init_from: {options.init_from} is an adapter of type {config.get('peft_type')}, not LORA; leave it out"
        )
    for name in _SAME_OPTIONS:
        if config.get(name) != getattr(options, name):
            raise SpecError(
                f"lora.{name}: {getattr(options, name)}, but {options.init_from} has {config.get(name)}; use {name}: "
                f"{json.dumps(config.get(name))}"
            )


def _weights(adapted: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(adapted)
    return weights


def _match(
    weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Return the weights by the names of the encoder: one is the end of the other."""
    found = {}
    for name, tensor in weights.items():
        inner = name.removeprefix(_PEFT_PREFIX)
        target = next((known for known in own if _is_same(inner, known.removeprefix(_PEFT_PREFIX))), None)
        if target is None and "lora_" not in name:  # a head
            continue
        if target is None:
            raise SpecError(
                f"lora.init_from: {source} adapts {name}, which has no adapter here; set lora.target_modules to those of its "
                "adapter_config.json"
            )
        if own[target].shape != tensor.shape:
            raise SpecError(
                f"lora.init_from: {name} of {source} has the shape {tuple(tensor.shape)}, and the adapter here "
                f"{tuple(own[target].shape)}; use the model that it was trained with"
            )
        found[target] = tensor
    return found


def _is_same(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")
