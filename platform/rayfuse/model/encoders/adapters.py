"""Add PEFT adapters (LoRA, IA³, OFT) to pretrained encoders."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders.adapter_folder import load_adapter
from rayfuse.model.encoders.layer_depth import largest_module_list
from rayfuse.model.encoders.lora_init import (
    ADAPTER_NAME,
    INITIALIZERS,
    LoraLayer,
    init_loftq,
    lora_layers,
)
from rayfuse.model.encoders.peft_errors import adapter_error_reason
from rayfuse.spec.encoders import IA3AdapterConfig, LoraAdapterConfig, OFTAdapterConfig
from rayfuse.spec.encoders.adapters import MODIFIES_BASE_WEIGHTS

if TYPE_CHECKING:
    from peft import IA3Config, LoraConfig, OFTConfig, PeftConfig

AdapterConfig = LoraAdapterConfig | IA3AdapterConfig | OFTAdapterConfig
"""Adapter options of a pretrained encoder's spec."""


def apply_adapters(model: Any, options: AdapterConfig) -> Any:
    """Return a transformers model as a PeftModel with adapters; all other parameters are frozen.

    Raises SpecError if the options do not fit the model.
    """
    from peft import get_peft_model

    adapter_type = type(options).__name__.removesuffix("AdapterConfig").lower()
    config = _CONFIG_BUILDERS[adapter_type](
        model, options, resolve_target_modules(model, options, adapter_type)
    )
    try:
        with warnings.catch_warnings():
            # They repeat what is checked below, or report names that transformers changed.
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        field, reason = adapter_error_reason(error)
        if field != "target_modules":
            raise SpecError(f"{adapter_type}: {reason}") from None
        raise SpecError(
            f"{adapter_type}.target_modules: {options.target_modules}: {reason} in a {type(model).__name__}; "
            "name linear layers of it, or use train: frozen or full"
        ) from None
    _check_modules_to_save(adapted, adapter_type, options.modules_to_save)
    if isinstance(options, LoraAdapterConfig):
        _init_lora(adapted, options)
        if options.init_from is not None:
            load_adapter(adapted, options)
    if isinstance(options, OFTAdapterConfig):
        _check_oft_block_size(adapted, options)
    return adapted


def preserves_base_weights(options: AdapterConfig) -> bool:
    """Return whether adapters leave the frozen weights unchanged and use them only in matrix products."""
    return not isinstance(options, LoraAdapterConfig) or not (
        options.use_dora or options.init_lora_weights.startswith(MODIFIES_BASE_WEIGHTS)
    )


def needs_own_base_weights(options: AdapterConfig) -> bool:
    """Return whether adapters only work with frozen weights that their initialization has changed."""
    changing = (*MODIFIES_BASE_WEIGHTS, "loftq")
    return isinstance(options, LoraAdapterConfig) and options.init_lora_weights.startswith(changing)


def is_adapter_module(name: str) -> bool:
    """Return whether a module's name is inside a PEFT adapter."""
    return any(part.startswith(("lora_", "ia3_", "oft_")) for part in name.split("."))


def resolve_target_modules(
    model: nn.Module, options: AdapterConfig, adapter_type: str = "lora"
) -> str | list[str]:
    """Return the target modules for PEFT: as configured, or full names in the last `last_n_layers` layers.

    Raises SpecError if `last_n_layers` is set and the model has no list of layers.
    """
    if options.last_n_layers is None:
        return options.target_modules
    stack = largest_module_list(model)
    if stack is None:
        raise SpecError(
            f"{adapter_type}.last_n_layers: a {type(model).__name__} has no list of layers; leave it out"
        )
    name, layers = stack
    targets = options.target_modules
    suffixes = [targets] if isinstance(targets, str) else targets
    return [
        f"{name}.{index}.{inner}"
        for index, layer in list(enumerate(layers))[-options.last_n_layers :]
        for inner, module in layer.named_modules()
        if isinstance(module, _linear_types())
        and (targets == "all-linear" or inner.rsplit(".", 1)[-1] in suffixes)
    ]


def _linear_types() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers, with transposed weights

    return nn.Linear, Conv1D


def _lora_config(model: nn.Module, options: LoraAdapterConfig, targets: str | list[str]) -> "LoraConfig":
    from peft import LoraConfig

    alpha: Any = options.lora_alpha  # annotated as int in PEFT, but only used as a divisor
    deferred = options.init_lora_weights in INITIALIZERS or options.init_lora_weights == "loftq"
    init: Any = True if options.init_lora_weights == "default" or deferred else options.init_lora_weights
    if options.init_lora_weights == "olora" and any(
        isinstance(module, _linear_types()[1]) for module in model.modules()
    ):
        raise SpecError(
            f"lora.init_lora_weights: olora does not support the transposed weights of a {type(model).__name__}; use pissa"
        )
    return LoraConfig(
        r=options.r,
        lora_alpha=alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=dict(options.alpha_pattern),
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        init_lora_weights=init,
        modules_to_save=options.modules_to_save or None,
    )


def _ia3_config(model: nn.Module, options: IA3AdapterConfig, targets: str | list[str]) -> "IA3Config":
    from peft import IA3Config

    feedforward: Any = list(options.feedforward_modules)
    if isinstance(targets, list):  # PEFT requires a subset of the targets, by the same names
        feedforward = [name for name in targets if name.endswith(tuple(feedforward))]
    return IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        modules_to_save=options.modules_to_save or None,
    )


def _oft_config(model: nn.Module, options: OFTAdapterConfig, targets: str | list[str]) -> "OFTConfig":
    from peft import OFTConfig

    return OFTConfig(
        r=0,
        oft_block_size=options.oft_block_size,
        module_dropout=options.module_dropout,
        target_modules=targets,
        modules_to_save=options.modules_to_save or None,
    )


_CONFIG_BUILDERS: dict[str, Callable[[nn.Module, Any, str | list[str]], "PeftConfig"]] = {
    "lora": _lora_config,
    "ia3": _ia3_config,
    "oft": _oft_config,
}


def _check_modules_to_save(adapted: nn.Module, adapter_type: str, module_names: Iterable[str]) -> None:
    """PEFT ignores names that match no module."""
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    for name in module_names:
        if not any(f"{name}.modules_to_save." in parameter for parameter in trained):
            raise SpecError(
                f"{adapter_type}.modules_to_save: `{name}` matches the end of no module's name; "
                "use a name from `model.named_modules()`, or leave it out"
            )


def _init_lora(adapted: nn.Module, options: LoraAdapterConfig) -> None:
    layers = lora_layers(adapted)
    patterns = (("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern))
    for field, pattern in patterns:
        for key in pattern:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in layers):
                raise SpecError(
                    f"lora.{field}: `{key}` matches no module that has an adapter; correct it, or leave it out"
                )
    if options.init_lora_weights in INITIALIZERS or options.init_lora_weights == "loftq":
        _check_lora_init(layers, options)
    if options.init_lora_weights == "loftq":
        init_loftq(layers.values())
    if options.init_lora_weights.startswith(MODIFIES_BASE_WEIGHTS):
        for layer in layers.values():
            _register_initial_weights(layer)
    if options.init_lora_weights == "mica":
        for layer in layers.values():
            _register_frozen_lora_b(layer)


def _check_lora_init(layers: Mapping[str, LoraLayer], options: LoraAdapterConfig) -> None:
    """Raise SpecError if an initialization needs another type of layer or a smaller rank."""
    for name, layer in layers.items():
        base, rank = layer.get_base_layer(), layer.r[ADAPTER_NAME]
        if not isinstance(base, _linear_types()):
            raise SpecError(
                f"lora.init_lora_weights: {options.init_lora_weights} is for linear layers, and {name} is of type "
                f"{type(base).__name__}; leave it out of lora.target_modules, or use `default`"
            )
        needed = 2 * rank if options.init_lora_weights == "lora_ga" else rank
        available = min(layer.in_features, layer.out_features)
        if needed > available:
            raise SpecError(
                f"lora.r: {rank}, but {options.init_lora_weights} needs {needed} singular vectors of {name}, which has "
                f"{available}; use {available * rank // needed} or less"
            )


def _register_initial_weights(layer: LoraLayer) -> None:
    """Save the adapter's initial weights with the model, and subtract them from the frozen weights on loading.

    They are not recomputed: with nearly equal singular values, decompositions on different machines differ by as much
    as the values themselves.
    """
    layer.register_buffer("initial_a", layer.lora_A[ADAPTER_NAME].weight.detach().clone())
    layer.register_buffer("initial_b", layer.lora_B[ADAPTER_NAME].weight.detach().clone())

    def restore(module: Any, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
        a, b = state.get(f"{prefix}initial_a"), state.get(f"{prefix}initial_b")
        if a is None or b is None or a.shape != module.initial_a.shape or b.shape != module.initial_b.shape:
            return  # load_state_dict reports missing tensors and shapes
        if torch.equal(a, module.initial_a) and torch.equal(b, module.initial_b):
            return
        change = module.initial_b @ module.initial_a - (b @ a).to(module.initial_a)
        weight = module.get_base_layer().weight
        if weight.ndim < 2:  # ZeRO-3 stores a flat partition on each worker
            raise DataError(
                "the checkpoint holds another decomposition of the frozen weights, such as from another machine, and "
                "ZeRO-3 cannot apply it; set train.deepspeed: {stage: 2}, or resume on the machine where training started"
            )
        with torch.no_grad():
            weight += module.scaling[ADAPTER_NAME] * (change.T if module.fan_in_fan_out else change)

    layer.register_load_state_dict_pre_hook(restore)


def _register_frozen_lora_b(layer: LoraLayer) -> None:
    """Save the adapter's frozen B with the model: like other decompositions, it is not recomputed on loading."""
    frozen = layer.lora_B[ADAPTER_NAME].weight
    layer.register_buffer("initial_b", frozen.detach().clone())

    def restore(module: Any, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
        b = state.get(f"{prefix}initial_b")
        if b is not None and b.shape == module.initial_b.shape:
            with torch.no_grad():
                module.lora_B[ADAPTER_NAME].weight.copy_(b)

    layer.register_load_state_dict_pre_hook(restore)


def _check_oft_block_size(adapted: nn.Module, options: OFTAdapterConfig) -> None:
    """PEFT silently replaces a block size that does not divide a layer's inputs."""
    from peft.tuners.oft import OFTLayer

    for name, module in adapted.named_modules():
        if isinstance(module, OFTLayer) and module.oft_block_size[ADAPTER_NAME] != options.oft_block_size:
            raise SpecError(
                f"oft.oft_block_size: {options.oft_block_size} does not divide the {module.in_features} inputs of "
                f"{name}; use a divisor such as {module.oft_block_size[ADAPTER_NAME]}"
            )
