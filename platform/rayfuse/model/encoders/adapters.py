"""Adapters on a pretrained encoder, through PEFT."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders.adapter_starts import ADAPTER, STARTS, begin_rounded, lora_layers
from rayfuse.model.encoders.stack import largest_stack
from rayfuse.spec.encoders import IA3, OFT, Lora

_REPLACES_WEIGHTS = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that move a part of the frozen weights into the adapter."""


def with_adapters(model: Any, options: Lora | IA3 | OFT) -> Any:
    """The model with adapters, all else frozen. Raises SpecError where the options do not fit the model."""
    from peft import get_peft_model

    kind = type(options).__name__.lower()
    config = _CONFIGS[kind](model, options, adapted_modules(model, options, kind))
    try:
        with warnings.catch_warnings():
            # What they say is checked below, or is about names that others changed.
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"{kind}.targets: {options.targets}: no such modules in a {type(model).__name__} ({reason}); "
            "name some of it, or choose train: frozen or full"
        ) from None
    _check_saved(adapted, kind, options.modules_to_save)
    if isinstance(options, Lora):
        _finish_lora(adapted, options)
    if isinstance(options, OFT):
        _check_blocks(adapted, options)
    return adapted


def multiplies_only(options: Lora | IA3 | OFT) -> bool:
    """Whether adapters leave frozen weights as they are, and do no more than multiply with them."""
    return not isinstance(options, Lora) or not (options.dora or options.init.startswith(_REPLACES_WEIGHTS))


def is_adapter(module: str) -> bool:
    """Whether the name of a module is one that PEFT gives to parts of its own."""
    return any(part.startswith(("lora_", "ia3_", "oft_")) for part in module.split("."))


def adapted_modules(model: nn.Module, options: Lora | IA3 | OFT, kind: str = "lora") -> str | list[str]:
    """What PEFT gets as its target modules: names as they were given, or full ones in the last layers."""
    if options.layers is None:
        return options.targets
    stack = largest_stack(model)
    if stack is None:
        raise SpecError(f"{kind}.layers: a {type(model).__name__} has no list of layers; leave it out")
    name, layers = stack
    targets = options.targets
    wanted = [targets] if isinstance(targets, str) else targets
    return [
        f"{name}.{index}.{inner}"
        for index, layer in list(enumerate(layers))[-options.layers :]
        for inner, module in layer.named_modules()
        if isinstance(module, _linear_kinds())
        and (targets == "all-linear" or inner.rsplit(".", 1)[-1] in wanted)
    ]


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear maps, with transposed weights

    return nn.Linear, Conv1D


def _lora_config(model: nn.Module, options: Lora, targets: str | list[str]) -> Any:
    from peft import LoraConfig

    scale: Any = options.alpha  # peft's annotation says int, and it only ever divides it
    later = options.init in STARTS or options.init == "loftq"
    init: Any = True if options.init == "default" or later else options.init
    if options.init == "olora" and any(isinstance(module, _linear_kinds()[1]) for module in model.modules()):
        raise SpecError(
            f"lora.init: olora does not know the transposed weights of a {type(model).__name__}; choose pissa"
        )
    return LoraConfig(
        r=options.r,
        lora_alpha=scale,
        lora_dropout=options.dropout,
        target_modules=targets,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=dict(options.alpha_pattern),
        use_dora=options.dora,
        use_rslora=options.rslora,
        init_lora_weights=init,
        modules_to_save=options.modules_to_save or None,
    )


def _ia3_config(model: nn.Module, options: IA3, targets: str | list[str]) -> Any:
    from peft import IA3Config

    feedforward: Any = list(options.feedforward)
    if isinstance(targets, list):  # PEFT wants them to be some of the targets, by the same names
        feedforward = [name for name in targets if name.endswith(tuple(feedforward))]
    return IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        modules_to_save=options.modules_to_save or None,
    )


def _oft_config(model: nn.Module, options: OFT, targets: str | list[str]) -> Any:
    from peft import OFTConfig

    return OFTConfig(
        r=0,
        oft_block_size=options.block_size,
        module_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=options.modules_to_save or None,
    )


_CONFIGS: dict[str, Callable[[nn.Module, Any, str | list[str]], Any]] = {
    "lora": _lora_config,
    "ia3": _ia3_config,
    "oft": _oft_config,
}


def _check_saved(adapted: nn.Module, kind: str, wanted: Iterable[str]) -> None:
    """PEFT says nothing of a name that no module has."""
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    for name in wanted:
        if not any(f"{name}.modules_to_save." in found for found in trained):
            raise SpecError(
                f"{kind}.modules_to_save: no module's name ends with `{name}`; look at the names of the "
                "model's modules, or leave it out"
            )


def _finish_lora(adapted: nn.Module, options: Lora) -> None:
    layers = lora_layers(adapted)
    patterns = (("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern))
    for field, pattern in patterns:
        for key in pattern:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in layers):
                raise SpecError(f"lora.{field}: `{key}` fits the name of no module that has an adapter")
    if options.init in STARTS or options.init == "loftq":
        _check_start(layers, options)
    if options.init == "loftq":
        begin_rounded(layers.values())
    if options.init.startswith(_REPLACES_WEIGHTS):
        for layer in layers.values():
            _keep_beginning(layer)
    if options.init == "mica":
        for layer in layers.values():
            _keep_frozen(layer)


def _check_start(layers: Mapping[str, Any], options: Lora) -> None:
    """Raise SpecError where an adapter cannot begin as it is asked to."""
    for name, layer in layers.items():
        base, rank = layer.get_base_layer(), layer.r[ADAPTER]
        if not isinstance(base, _linear_kinds()):
            raise SpecError(
                f"lora.init: {options.init} is for linear maps, and {name} is a {type(base).__name__}; leave it out "
                "of lora.targets, or choose `default`"
            )
        needed = 2 * rank if options.init == "lora_ga" else rank
        there = min(layer.in_features, layer.out_features)
        if needed > there:
            raise SpecError(
                f"lora.r: {rank}, but {options.init} needs {needed} singular vectors of {name}, which has {there}; "
                f"write {there * rank // needed} or less"
            )


def _keep_beginning(layer: Any) -> None:
    """Save with the model what the adapter began as, and on loading subtract that from the frozen weights.

    A singular value decomposition differs between machines, where some singular values are nearly equal by as much as
    the values themselves; so what was subtracted must not be computed anew.
    """
    layer.register_buffer("first_a", layer.lora_A[ADAPTER].weight.detach().clone())
    layer.register_buffer("first_b", layer.lora_B[ADAPTER].weight.detach().clone())

    def restore(module: Any, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
        a, b = state.get(f"{prefix}first_a"), state.get(f"{prefix}first_b")
        if a is None or b is None or a.shape != module.first_a.shape or b.shape != module.first_b.shape:
            return  # whoever loads says what is missing
        if torch.equal(a, module.first_a) and torch.equal(b, module.first_b):
            return
        change = module.first_b @ module.first_a - (b @ a).to(module.first_a)
        weight = module.get_base_layer().weight
        if weight.ndim < 2:  # ZeRO-3 keeps a flat part of it on each worker
            raise DataError(
                "the frozen weights were decomposed otherwise when this training began, perhaps on another machine, and "
                "ZeRO-3 cannot change them; write train.deepspeed: {stage: 2}, or go on where it began"
            )
        with torch.no_grad():
            weight += module.scaling[ADAPTER] * (change.T if module.fan_in_fan_out else change)

    layer.register_load_state_dict_pre_hook(restore)


def _keep_frozen(layer: Any) -> None:
    """Save with the model the half of the adapter that is frozen, which is as hard to compute anew."""
    frozen = layer.lora_B[ADAPTER].weight
    layer.register_buffer("first_b", frozen.detach().clone())

    def restore(module: Any, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
        b = state.get(f"{prefix}first_b")
        if b is not None and b.shape == module.first_b.shape:
            with torch.no_grad():
                module.lora_B[ADAPTER].weight.copy_(b)

    layer.register_load_state_dict_pre_hook(restore)


def _check_blocks(adapted: nn.Module, options: OFT) -> None:
    """PEFT would choose another block size where this one does not fit."""
    from peft.tuners.oft import OFTLayer

    for name, module in adapted.named_modules():
        if isinstance(module, OFTLayer) and module.oft_block_size[ADAPTER] != options.block_size:
            raise SpecError(
                f"oft.block_size: {options.block_size} does not divide the {module.in_features} inputs of "
                f"{name}; write another, such as {module.oft_block_size[ADAPTER]}"
            )
