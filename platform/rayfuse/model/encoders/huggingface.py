"""Pretrained encoders in Hugging Face layout: frozen, with adapters, or fine-tuned in part or in full."""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.huggingface_errors import load_error_reason, load_errors
from rayfuse.modalities.pretrained import resolve_model_path, whisper_num_positions
from rayfuse.modalities.vision_language import is_vision_language_model
from rayfuse.model.encoders.adapters import apply_adapters, is_adapter_module, preserves_base_weights
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.layer_depth import depths_from_top, largest_module_list
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.encoders.vision_language import image_tokens, keep_image_part
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import HuggingFaceEncoderConfig as Options
from rayfuse.spec.inputs import AudioInput, TextInput

_INPUT_NAMES = {
    "image": ("pixel_values",),
    "audio": ("input_values", "input_features"),
    "text": ("input_ids",),
}
_TOWERS = {"image": "vision_model", "audio": "audio_model", "text": "text_model"}
"""Attributes of the encoder of each modality in models of two modalities, such as CLIP."""

_DETERMINISTIC_CONFIG = {
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "apply_spec_augment": False,
    "use_cache": False,
}
"""Settings that prevent skipped layers and masked positions in training, with which ranks would run different layers
and some weights get no gradient, and the key-value cache of causal models."""

_PRETRAINING_PARAMETERS = ("masked_spec_embed", "mask_token")
"""Names of parameters that only pretraining uses; they would get no gradient."""

_EXACT_MASKS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "wav2vec2-bert")
"""Speech models whose outputs do not depend on masked steps. In others, convolutions and group norms read them, so that
clips are always padded to `max_seconds`, for outputs that do not depend on the rest of a batch."""

_LOAD_WEIGHTS = ContextVar("load_weights", default=True)


_LOADING = threading.Lock()
"""While it loads a model, transformers replaces methods of its classes, which two threads would not restore."""


@contextlib.contextmanager
def skip_weight_loading() -> Iterator[None]:
    """Build pretrained encoders from their configuration alone within the context, as resource estimation does."""
    token = _LOAD_WEIGHTS.set(False)
    try:
        yield
    finally:
        _LOAD_WEIGHTS.reset(token)


class HuggingFaceEncoder(Encoder):
    """Pretrained transformers model, called with the features of its own processor.

    Returns pooled hidden states: float (rows, 1, width), or (rows, tokens, width) with `pool: none`. For videos, the
    rows are frames.
    """

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        self.options = options
        self.input_type = "image" if source.type == "video" else source.type
        """Type of the inputs of the model."""
        self.model = _load(options.model, self.input_type)
        self.width = _width(options, self.model.config)
        self.check_input(source)
        if isinstance(source, TextInput):
            _check_pool(options, self.model.config.model_type)
        if isinstance(source, AudioInput) and self.model.config.model_type == "whisper":
            _truncate_positions(
                self.model, whisper_num_positions(round(source.sample_rate * source.max_seconds))
            )
        if options.adapter is not None:
            self.model = apply_adapters(self.model, options.adapter)
        elif options.last_layers is not None:
            unfreeze_last_layers(self.model, options.last_layers)
        elif options.train == "frozen":
            self.model.requires_grad_(False)
        self.pool = Pooling(options.pool, self.width)

    def check_input(self, source: Any) -> None:
        if isinstance(source, TextInput):
            _check_max_tokens(self.options.model, self.model, source.max_tokens)

    def forward(self, **features: torch.Tensor) -> Tokens:
        frozen = self.options.train == "frozen" and not any(
            tensor.requires_grad
            for tensor in features.values()  # explanations differentiate by pixels
        )
        mask = features.get("attention_mask")
        normalizes_over_time = getattr(self.model.config, "feat_extract_norm", None) == "group"
        if mask is not None and self.model.config.model_type in _EXACT_MASKS and not normalizes_over_time:
            features = _trim_padding(features, mask)
            mask = features["attention_mask"]
        if normalizes_over_time:  # trained without a mask
            features = {name: values for name, values in features.items() if name != "attention_mask"}
        with torch.no_grad() if frozen else contextlib.nullcontext():
            hidden = self._hidden_states(features)
        if hidden.ndim == 4:  # convolutional models: (rows, channels, height, width)
            hidden = hidden.flatten(2).transpose(1, 2)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], device=hidden.device)
        return self.pool(hidden, _fit_mask(mask, hidden.shape[1], self.model).bool())

    def _hidden_states(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        chosen = self.options.hidden_states
        if is_vision_language_model(self.model.config):
            return image_tokens(self.model, **features)
        if chosen == (-1,):
            return self.model(**features).last_hidden_state
        states = self.model(**features, output_hidden_states=True).hidden_states
        # Only the last hidden state is normalized by the model; this brings all to one scale.
        return torch.cat([nn.functional.layer_norm(states[n], states[n].shape[-1:]) for n in chosen], dim=-1)

    def frozen_linear_layers(self) -> Iterator[nn.Linear]:
        """Yield the linear layers whose weights stay frozen and are used only in matrix products."""
        if self.options.adapter is not None and not preserves_base_weights(self.options.adapter):
            return
        for name, module in self.model.named_modules():
            is_base_layer = type(module) is nn.Linear and not is_adapter_module(name)
            if is_base_layer and not any(parameter.requires_grad for parameter in module.parameters()):
                yield module

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """Set the mode of the pool and the adapters; a frozen model and all batch norms stay in evaluation mode.

        With batch norm in training mode, a row's encoding would depend on the rest of the batch.
        """
        super().train(mode)
        if self.options.train == "frozen":
            self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _trim_padding(features: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cut off the steps at the end that are padding in all rows; at least one step stays."""
    steps = mask.shape[1]
    longest = max(1, int((mask * torch.arange(1, steps + 1, device=mask.device)).max()))
    return {
        name: values[:, :longest] if values.ndim > 1 and values.shape[1] == steps else values
        for name, values in features.items()
    }


def _fit_mask(mask: torch.Tensor, num_tokens: int, model: Any) -> torch.Tensor:
    """Return the mask of a model's hidden states, of which speech models have fewer than input steps: (rows, num_tokens)."""
    if mask.shape[1] == num_tokens:
        return mask
    downsample = getattr(model, "_get_feature_vector_attention_mask", None)
    if downsample is not None:  # of transformers' speech models with convolutions over time
        return cast(torch.Tensor, downsample(num_tokens, mask))
    lengths = (mask.sum(1, keepdim=True) * num_tokens / mask.shape[1]).ceil()
    return torch.arange(num_tokens, device=mask.device) < lengths


def _load(model: str, input_type: str) -> Any:
    """Load a model's encoder of one modality in float32. Raises DataError if its files are incomplete."""
    loaded, missing = load_checkpoint(model)
    encoder = _encoder_of(loaded, input_type)
    if is_vision_language_model(encoder.config) and input_type == "image":
        encoder = keep_image_part(encoder)
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None and list(pooler.parameters()):
        encoder.pooler = None  # unused: its weights would get no gradient
    _freeze_unused(encoder)
    if encoder.main_input_name not in _INPUT_NAMES[input_type]:
        raise SpecError(
            f"{model}: a {type(encoder).__name__} reads {encoder.main_input_name} and cannot encode {input_type}; "
            f"use a model that reads {' or '.join(_INPUT_NAMES[input_type])}"
        )
    required = tuple(name for name, parameter in encoder.named_parameters() if parameter.requires_grad)
    missing = [name for name in missing if name.endswith(required)]
    if missing:
        raise DataError(
            f"{model}: its weights lack {len(missing)} tensors, such as {missing[0]}; download the model again"
        )
    return encoder


def load_pretrained(model: str, input_type: str) -> tuple[Any, Any]:
    """Load a model as it is, and return it and its part that encodes a type of input."""
    loaded, _ = load_checkpoint(model, for_training=False)
    return loaded, _encoder_of(loaded, input_type)


def _encoder_of(loaded: Any, input_type: str) -> Any:
    if is_vision_language_model(loaded.config):
        return loaded
    encoder = loaded.get_encoder() if loaded.config.is_encoder_decoder else loaded
    return getattr(encoder, _TOWERS[input_type], encoder)


def _truncate_positions(encoder: Any, positions: int) -> None:
    """Truncate the positions of Whisper's encoder, which otherwise requires clips of 30 seconds."""
    weight = encoder.embed_positions.weight[:positions].clone()
    encoder.embed_positions = nn.Embedding.from_pretrained(weight)
    encoder.max_source_positions = encoder.config.max_source_positions = len(weight)


def load_checkpoint(
    model: str, for_training: bool = True, auto_class: str = "AutoModel"
) -> tuple[Any, list[str]]:
    """Load a model in float32 without running code of its folder; also return the names of tensors missing in its files.

    `auto_class` is the class of transformers that loads it. Raises DataError if it cannot be loaded.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    loader = getattr(transformers, auto_class)
    try:
        folder = resolve_model_path(model)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name, value in _DETERMINISTIC_CONFIG.items():
            if for_training and hasattr(config, name):
                setattr(config, name, value)
        if not _LOAD_WEIGHTS.get():
            return loader.from_config(config, dtype=torch.float32, trust_remote_code=False), []
        with _LOADING:
            loaded, report = loader.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except load_errors() as error:
        raise DataError(f"{model}: cannot load a Hugging Face model: {load_error_reason(error)}") from None
    return loaded, sorted(report["missing_keys"])


def _width(options: Options, config: Any) -> int:
    """Return the width of an encoder's tokens. Raises SpecError if a requested hidden state cannot be read."""
    if not is_vision_language_model(config):
        return _hidden_size(options.model, config, options.hidden_states) * len(options.hidden_states)
    if options.hidden_states != (-1,):
        raise SpecError(
            f"hidden_states: cannot be read from {options.model}, a vision–language model; leave it out"
        )
    return int(config.get_text_config().hidden_size)


def _hidden_size(model: str, config: Any, hidden_states: tuple[int, ...]) -> int:
    """Return the width of the hidden states; of convolutional models, which list one per stage, the last.

    Raises SpecError if a requested hidden state does not exist or has another width.
    """
    stages = getattr(config, "hidden_sizes", None) or [None]
    layers = getattr(config, "num_hidden_layers", 0) if stages == [None] else 0
    invalid = [number for number in hidden_states if number != -1 and not -1 - layers <= number <= layers]
    if invalid:
        raise SpecError(
            f"hidden_states: {invalid[0]}, but {model} has {layers} layers of one width; use numbers from 0 to {layers}"
            if layers
            else f"hidden_states: {invalid[0]}, but the layers of {model} differ in width; leave hidden_states out"
        )
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or stages[-1]
    if not isinstance(width, int):
        raise SpecError(
            f"{model}: the configuration of a {config.model_type} model has no hidden_size; use another model"
        )
    return width


def _check_max_tokens(name: str, model: Any, max_tokens: int) -> None:
    """Raise SpecError if texts may exceed the model's positions, which would fail in the middle of training."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    limit = getattr(model.config, "max_position_embeddings", None)
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    if limit and padding is not None:  # RoBERTa counts positions from there
        limit -= padding + 1
    if limit and max_tokens > limit:
        raise SpecError(
            f"max_tokens: {max_tokens} is above the {limit} positions of {name}; use max_tokens: {limit}"
        )


def _freeze_unused(encoder: Any) -> None:
    """Freeze parameters that do not affect the last hidden states: without a gradient, they would block other ranks."""
    unused = [
        part
        for name, part in encoder.named_parameters()
        if name.rsplit(".", 1)[-1] in _PRETRAINING_PARAMETERS
    ]
    if encoder.config.model_type == "clip_vision_model":  # applied to the pooled output only, unlike SigLIP's
        unused += encoder.post_layernorm.parameters()
    if getattr(encoder, "use_head", False):  # SigLIP's pooling
        unused += encoder.head.parameters()
    for part in unused:
        part.requires_grad_(False)


def _check_pool(options: Options, model_type: str) -> None:
    """Raise SpecError for `pool: first` of a causal model, whose first token attends only to itself."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if options.pool == "first" and causal and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise SpecError(
            f"pool: first, but {options.model} is a causal model ({model_type}), whose first token attends to no other; "
            "use pool: last or mean"
        )


def unfreeze_last_layers(model: nn.Module, num_layers: int) -> None:
    """Freeze all but the last `num_layers` layers and the modules after them. Raises SpecError if there are fewer."""
    stack = largest_module_list(model)
    if stack is None or len(stack[1]) < num_layers:
        layers = "no list of layers" if stack is None else f"only {len(stack[1])} layers"
        remedy = "full" if stack is None else f"last:{len(stack[1])} or full"
        raise SpecError(
            f"train: last:{num_layers}, but a {type(model).__name__} has {layers}; use train: {remedy}"
        )
    depths = depths_from_top(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and depths[name] <= num_layers)
