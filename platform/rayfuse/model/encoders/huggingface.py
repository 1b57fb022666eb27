"""Any pretrained encoder in Hugging Face's layout: frozen, with adapters, or trained in part or in full."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.modalities.pretrained import local_folder, whisper_positions
from rayfuse.model.encoders.adapters import is_adapter, multiplies_only, with_adapters
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.pooling import Pooling
from rayfuse.model.encoders.stack import depths_from_top, largest_stack
from rayfuse.model.tokens import Tokens
from rayfuse.spec.encoders import HuggingFaceEncoder as Options
from rayfuse.spec.inputs import AudioInput, TextInput

_READS = {
    "image": ("pixel_values",),
    "audio": ("input_values", "input_features"),
    "text": ("input_ids",),
}
_TOWERS = {"image": "vision_model", "audio": "audio_model", "text": "text_model"}
"""Where models of two kinds of input, such as CLIP, keep the encoder of each."""

_STEADY = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False, "use_cache": False}
"""What of a configuration makes training skip layers or mask positions at random: ranks would then run
different layers, and weights that happen not to run get no gradient. And causal models need not remember."""

_UNUSED = ("masked_spec_embed", "mask_token")
"""Parameters that only pretraining needs: they would get no gradient."""

_READ_WEIGHTS = ContextVar("read_weights", default=True)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within it, pretrained encoders are built from their configuration alone: enough to plan with."""
    before = _READ_WEIGHTS.set(False)
    try:
        yield
    finally:
        _READ_WEIGHTS.reset(before)


class HuggingFaceEncoder(Encoder):
    """Features as its own processor names them → its last hidden states, pooled as the spec says.

    For a video, it is the encoder of each frame.
    """

    def __init__(self, options: Options, source: Any) -> None:
        super().__init__(options, source)
        self.options = options
        self.model = _load(options.model, "image" if source.type == "video" else source.type)
        self.width = _width(options.model, self.model.config, options.hidden_states) * len(
            options.hidden_states
        )
        if isinstance(source, TextInput):
            _check_length(options.model, self.model, source.max_tokens)
            _check_pool(options, self.model.config.model_type)
        if isinstance(source, AudioInput) and self.model.config.model_type == "whisper":
            _shorten(self.model, whisper_positions(round(source.sample_rate * source.max_seconds)))
        if options.adapter is not None:
            self.model = with_adapters(self.model, options.adapter)
        elif options.last_layers is not None:
            _train_last(self.model, options.last_layers)
        elif options.train == "frozen":
            self.model.requires_grad_(False)
        self.pool = Pooling(options.pool, self.width)

    def forward(self, **features: torch.Tensor) -> Tokens:
        frozen = self.options.train == "frozen" and not any(
            tensor.requires_grad
            for tensor in features.values()  # explanations ask which pixels counted
        )
        with torch.no_grad() if frozen else contextlib.nullcontext():
            hidden = self._hidden(features)
        if hidden.ndim == 4:  # convolutional models: (rows, width, height, width of the picture)
            hidden = hidden.flatten(2).transpose(1, 2)
        mask = features.get("attention_mask")
        if mask is None or mask.shape != hidden.shape[:2]:
            mask = torch.ones(hidden.shape[:2], device=hidden.device)
        return self.pool(hidden, mask.bool())

    def _hidden(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        chosen = self.options.hidden_states
        if chosen == (-1,):
            return self.model(**features).last_hidden_state
        states = self.model(**features, output_hidden_states=True).hidden_states
        # Inner states have no norm after them, and the last has: one scale for all.
        return torch.cat([nn.functional.layer_norm(states[n], states[n].shape[-1:]) for n in chosen], dim=-1)

    def frozen_linears(self) -> Iterator[nn.Linear]:
        """Linear maps whose weights no training changes, and which nothing uses but to multiply with them."""
        if self.options.adapter is not None and not multiplies_only(self.options.adapter):
            return
        for name, module in self.model.named_modules():
            own = type(module) is nn.Linear and not is_adapter(name)
            if own and not any(parameter.requires_grad for parameter in module.parameters()):
                yield module

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """A frozen encoder always runs as in evaluation: its dropout must not disturb what does not learn.

        So does batch norm of one that is trained: else a row's encoding would depend on its neighbours.
        """
        super().train(mode)
        if self.options.train == "frozen":
            self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _load(model: str, kind: str) -> Any:
    """The encoder of one kind of input, in float32. Raises DataError where its files are not whole."""
    whole, absent = _from_pretrained(model)
    encoder = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    encoder = getattr(encoder, _TOWERS[kind], encoder)
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None and list(pooler.parameters()):
        encoder.pooler = None  # we pool ourselves, and unused weights would never get a gradient
    _freeze_unused(encoder)
    if encoder.main_input_name not in _READS[kind]:
        raise SpecError(
            f"{model}: a {type(encoder).__name__} reads {encoder.main_input_name} and cannot encode {kind}; "
            f"name a model that reads {' or '.join(_READS[kind])}"
        )
    needed = tuple(name for name, parameter in encoder.named_parameters() if parameter.requires_grad)
    lacking = [name for name in absent if name.endswith(needed)]
    if lacking:
        raise DataError(
            f"{model}: its weights lack {len(lacking)} tensors, such as {lacking[0]}; get it again"
        )
    return encoder


def _shorten(encoder: Any, positions: int) -> None:
    """Leave Whisper's encoder only the first positions: it wants as many as there are, also of a short clip."""
    kept = encoder.embed_positions.weight[:positions].clone()
    encoder.embed_positions = nn.Embedding.from_pretrained(kept)
    encoder.max_source_positions = encoder.config.max_source_positions = len(kept)


def _from_pretrained(model: str) -> tuple[Any, list[str]]:
    """A model without running any code of its folder, and the names of tensors that its files lack."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    try:
        folder = local_folder(model)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name, value in _STEADY.items():
            if hasattr(config, name):
                setattr(config, name, value)
        if not _READ_WEIGHTS.get():
            return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False), []
        whole, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{model}: no Hugging Face model with safetensors can be read there: {reason}"
        ) from None
    return whole, sorted(report["missing_keys"])


def _width(model: str, config: Any, chosen: tuple[int, ...]) -> int:
    """How wide each hidden state is: convolutional models list a width per stage, and only their last can be had."""
    stages = getattr(config, "hidden_sizes", None) or [None]
    layers = getattr(config, "num_hidden_layers", 0) if stages == [None] else 0
    beyond = [number for number in chosen if number != -1 and not -1 - layers <= number <= layers]
    if beyond:
        raise SpecError(
            f"hidden_states: {beyond[0]}, but {model} has {layers} layers of one width; write numbers from 0 to {layers}"
            if layers
            else f"hidden_states: {beyond[0]}, but the layers of {model} differ in width; leave hidden_states out"
        )
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or stages[-1]
    if not isinstance(width, int):
        raise SpecError(
            f"{model}: a {config.model_type} model tells no width of its hidden states; name another"
        )
    return width


def _check_length(name: str, model: Any, max_tokens: int) -> None:
    """A longer text would fail in the middle of training, at the first row that has one."""
    longest = getattr(model.config, "max_position_embeddings", None)
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    if longest and padding is not None:  # RoBERTa counts positions from there
        longest -= padding + 1
    if longest and max_tokens > longest:
        raise SpecError(
            f"max_tokens: {max_tokens}, but {name} reads at most {longest}; write max_tokens: {longest}"
        )


def _freeze_unused(encoder: Any) -> None:
    """Freeze what does not act on the last hidden states: on some rank its gradient would be waited for in vain."""
    unused = [part for name, part in encoder.named_parameters() if name.rsplit(".", 1)[-1] in _UNUSED]
    if encoder.config.model_type == "clip_vision_model":  # acts on a pooled output alone, unlike SigLIP's
        unused += encoder.post_layernorm.parameters()
    if getattr(encoder, "use_head", False):  # SigLIP's pooling
        unused += encoder.head.parameters()
    for part in unused:
        part.requires_grad_(False)


def _check_pool(options: Options, model_type: str) -> None:
    """The first token of a causal model has seen nothing but itself."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if options.pool == "first" and causal and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise SpecError(
            f"pool: first, but {options.model} is a causal model ({model_type}), whose first token sees no other; "
            "write pool: last or mean"
        )


def _train_last(model: nn.Module, count: int) -> None:
    """Freeze all but the last `count` layers and what comes after them."""
    stack = largest_stack(model)
    if stack is None or len(stack[1]) < count:
        found = "no list of layers" if stack is None else f"only {len(stack[1])} layers"
        remedy = "full" if stack is None else f"last:{len(stack[1])} or full"
        raise SpecError(
            f"train: last:{count}, but a {type(model).__name__} has {found}; write train: {remedy}"
        )
    depths = depths_from_top(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and depths[name] <= count)
