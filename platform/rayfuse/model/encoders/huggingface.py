"""Any pretrained encoder in Hugging Face's layout: frozen, with LoRA, or trained in full."""

import contextlib
import warnings
from typing import Any

import torch
from torch import nn

from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, one_token
from rayfuse.spec.encoders import HuggingFaceEncoder as Options
from rayfuse.spec.encoders import Lora
from rayfuse.spec.inputs import Input, TextInput

_READS = {
    "image": ("pixel_values",),
    "audio": ("input_values", "input_features"),
    "text": ("input_ids",),
}
_TOWERS = {"image": "vision_model", "audio": "audio_model", "text": "text_model"}
"""Where models of two kinds of input, such as CLIP, keep the encoder of each."""

_STEADY = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}
"""What of a configuration makes training skip layers or mask positions at random: ranks would then run
different layers, and weights that happen not to run get no gradient."""


class HuggingFaceEncoder(Encoder):
    """Features as its own processor names them → its last hidden states, pooled as the spec says."""

    def __init__(self, options: Options, source: Input) -> None:
        super().__init__(options, source)
        self.options = options
        self.model = _load(options.model, source.type)
        self.width = _width(options.model, self.model.config)
        if isinstance(source, TextInput):
            _check_length(options.model, self.model, source.max_tokens)
        if self.options.train == "lora":
            self.model = _with_lora(self.model, self.options.lora)
        elif self.options.train == "frozen":
            self.model.requires_grad_(False)

    def forward(self, **features: torch.Tensor) -> Tokens:
        frozen = self.options.train == "frozen" and not any(
            tensor.requires_grad
            for tensor in features.values()  # explanations ask which pixels counted
        )
        with torch.no_grad() if frozen else contextlib.nullcontext():
            hidden = self.model(**features).last_hidden_state
        if hidden.ndim == 4:  # convolutional models: (rows, width, height, width of the picture)
            hidden = hidden.flatten(2).transpose(1, 2)
        mask = features.get("attention_mask")
        if mask is None or mask.shape != hidden.shape[:2]:
            mask = torch.ones(hidden.shape[:2], device=hidden.device)
        if self.options.pool == "none":
            return hidden, mask.bool()
        if self.options.pool == "first":
            return one_token(hidden[:, 0])
        weights = mask.unsqueeze(2).to(hidden.dtype)
        return one_token((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))

    def train(self, mode: bool = True) -> "HuggingFaceEncoder":
        """A frozen encoder always runs as in evaluation: its dropout must not disturb what does not learn."""
        super().train(mode)
        if self.options.train == "frozen":
            self.model.eval()
        return self


def _load(model: str, kind: str) -> Any:
    """The encoder of one kind of input, in float32. Raises DataError where its files are not whole."""
    whole, absent = _from_pretrained(model)
    encoder = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    encoder = getattr(encoder, _TOWERS[kind], encoder)
    pooler = getattr(encoder, "pooler", None)
    if pooler is not None and list(pooler.parameters()):
        encoder.pooler = None  # we pool ourselves, and unused weights would never get a gradient
    if getattr(encoder, "masked_spec_embed", None) is not None:
        encoder.masked_spec_embed.requires_grad_(False)  # unused as well: see _STEADY
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


def _from_pretrained(model: str) -> tuple[Any, list[str]]:
    """A model without running any code of its folder, and the names of tensors that its files lack."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        for name, value in _STEADY.items():
            if hasattr(config, name):
                setattr(config, name, value)
        whole, report = AutoModel.from_pretrained(
            model,
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


def _width(model: str, config: Any) -> int:
    """How wide the last hidden states are: convolutional models list a width per stage."""
    stages = getattr(config, "hidden_sizes", None) or [None]
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


def _with_lora(model: Any, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    scale: Any = lora.alpha  # peft's annotation says int, and it only ever divides it
    targets = lora.targets if lora.layers is None else _in_last_layers(model, lora.targets, lora.layers)
    config = LoraConfig(r=lora.r, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it renames
            return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"lora.targets: {lora.targets}: no such modules in a {type(model).__name__} ({reason}); "
            "name some of it, or choose train: frozen or full"
        ) from None


def _in_last_layers(model: nn.Module, targets: str | list[str], count: int) -> list[str]:
    """Full names of the linear modules that `targets` means in the last `count` layers of the largest stack."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise SpecError(f"lora.layers: a {type(model).__name__} has no list of layers; leave it out")
    wanted = [targets] if isinstance(targets, str) else targets
    name, layers = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
    return [
        f"{name}.{index}.{inner}"
        for index, layer in list(enumerate(layers))[-count:]
        for inner, module in layer.named_modules()
        if isinstance(module, nn.Linear) and (targets == "all-linear" or inner.rsplit(".", 1)[-1] in wanted)
    ]
