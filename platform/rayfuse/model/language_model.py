"""Language models from transformers: embeddings in, losses of target tokens or generated tokens out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayfuse.decoding.input_memory import InputAttention
from rayfuse.errors import SpecError
from rayfuse.model.encoders.adapters import apply_adapters, is_adapter_module, preserves_base_weights
from rayfuse.model.encoders.huggingface import load_checkpoint, unfreeze_last_layers
from rayfuse.model.encoders.vision_language import keep_language_part
from rayfuse.spec.encoders import PretrainedModelConfig
from rayfuse.spec.tasks.generation import DecodingConfig

if TYPE_CHECKING:
    from rayfuse.decoding.model_runner import ModelRunner

_MAX_LOGITS = 1 << 25
"""Logits that are computed at once: 128 MiB in float32."""


class LanguageModel(nn.Module):
    """A pretrained language model that reads embeddings of text tokens and soft tokens; see its subclasses."""

    auto_class: ClassVar[str]
    """Class of transformers that loads it."""

    def __init__(self, options: PretrainedModelConfig) -> None:
        """Load the model, with adapters or partly frozen as in the options.

        Raises SpecError if the options do not fit it; DataError if it cannot be loaded.
        """
        super().__init__()
        self.options = options
        loaded = self._load()
        self.stop_ids = _stop_ids(loaded)
        """Tokens that end a text according to the model's own settings for generation."""
        _reset_generation_config(loaded)
        weight = loaded.get_input_embeddings().weight
        self.width = int(getattr(weight, "ds_shape", weight.shape)[-1])
        """Width of the embeddings."""
        self.model = _set_trainable(loaded, options)
        self._input_attention: tuple[InputAttention, ...] = ()  # a tuple, as it is the module of another
        self._runner: tuple[Any, ModelRunner | None] | None = None

    @property
    def transformer(self) -> Any:
        """The transformers model, inside of its adapters."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        found: torch.device = self.transformer.get_input_embeddings().weight.device
        return found

    @property
    def initial_std(self) -> float:
        """Standard deviation of new weights, as the model itself was initialized."""
        return float(getattr(self.transformer.config.get_text_config(), "initializer_range", None) or 0.02)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Run the model as it was before training, in evaluation mode. Raises SpecError if it has no adapters."""
        if not hasattr(self.model, "disable_adapter"):
            raise SpecError(
                f"{self.options.model} has no adapters that could be switched off; use `train: lora`"
            )
        parameters = {each: each.requires_grad for each in self.model.parameters()}
        was_training = self.training
        self.eval()
        try:
            with self.model.disable_adapter():
                yield
        finally:
            self.train(was_training)
            for (
                parameter,
                trained,
            ) in parameters.items():  # PEFT trains all parameters of an adapter that is enabled
                parameter.requires_grad_(trained)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens, float (…, width)."""
        found: torch.Tensor = self.transformer.get_input_embeddings()(ids)
        return found

    def token_losses(self, hidden: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropy of each target token, float32 (tokens,), and whether it is the most probable one.

        hidden: float (tokens, width), the states at the positions before the targets; ids: int64 (tokens,). Logits are
        computed in chunks, and again in the backward pass, so that memory does not grow with tokens times vocabulary.
        """
        chunks = self._num_chunks(len(ids))
        parts = [
            self._chunk_losses(states, targets, recompute=chunks > 1)
            for states, targets in zip(hidden.tensor_split(chunks), ids.tensor_split(chunks), strict=True)
        ]
        return torch.cat([losses for losses, _ in parts]), torch.cat([right for _, right in parts])

    @property
    def runner(self) -> "ModelRunner | None":
        """Forward passes over cache slots, for `rayfuse.decoding`, with the weights as they are.

        None for an architecture that cannot decode requests of different lengths in one batch, such as Mamba.
        """
        from rayfuse.decoding.ragged_check import (
            build_runner,  # imports transformers, a second that other models save
        )

        weight = self.transformer.get_input_embeddings().weight
        place = (weight.device, weight.dtype, torch.is_autocast_enabled(weight.device.type))
        if self._runner is None or self._runner[0] != place:
            try:
                self._runner = (place, build_runner(self.model, self.input_attention))
            except SpecError:
                self._runner = (place, None)
        return self._runner[1]

    @property
    def input_attention(self) -> InputAttention | None:
        """Layers that the model's own layers call, and that attend to inputs."""
        return next(iter(self._input_attention), None)

    def set_input_attention(self, attention: InputAttention) -> None:
        """Set `input_attention`, which stays a module of the task."""
        self._input_attention = (attention,)

    def frozen_linear_layers(self) -> Iterator[nn.Linear]:
        """Yield the linear layers whose weights stay frozen and are used only in matrix products."""
        adapter = self.options.adapter
        if adapter is not None and not preserves_base_weights(adapter):
            return
        head = self.transformer.get_output_embeddings()  # often shares its weights with the embeddings
        for name, module in self.model.named_modules():
            is_base_layer = type(module) is nn.Linear and module is not head and not is_adapter_module(name)
            if is_base_layer and not any(parameter.requires_grad for parameter in module.parameters()):
                yield module

    def train(self, mode: bool = True) -> "LanguageModel":
        """Set the mode; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.options.frozen:
            self.model.eval()
        return self

    def _load(self) -> Any:
        return load_checkpoint(self.options.model, auto_class=self.auto_class)[0]

    def _num_chunks(self, tokens: int) -> int:
        """Return the number of chunks: the same on all ranks if they gather the weights of the head for each of them."""
        weight = self.transformer.get_output_embeddings().weight
        vocabulary = getattr(weight, "ds_shape", weight.shape)[0]
        chunks = max(1, -(-tokens * vocabulary // _MAX_LOGITS))
        if not is_sharded(self.transformer):
            return chunks
        most = torch.tensor(chunks, device=weight.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    def _chunk_losses(
        self, hidden: torch.Tensor, ids: torch.Tensor, recompute: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if recompute and torch.is_grad_enabled():
            found: tuple[torch.Tensor, torch.Tensor] = checkpoint(
                self._losses, hidden, ids, use_reentrant=False
            )
            return found
        return self._losses(hidden, ids)

    def _losses(self, hidden: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._finish_logits(self.transformer.get_output_embeddings()(hidden).float())
        losses = nn.functional.cross_entropy(logits, ids, reduction="none")
        return losses, (logits.argmax(dim=1) == ids).float()

    def _finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Change logits as the model does after its output layer."""
        return _scale_and_cap(logits, self.transformer.config)

    def _generate(
        self,
        inputs: Mapping[str, Any],
        stop_ids: Sequence[int],
        max_tokens: int,
        decoding: DecodingConfig,
    ) -> torch.Tensor:
        from transformers import GenerationConfig, GenerationMixin

        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=decoding.temperature > 0,
            num_beams=decoding.num_beams,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            use_cache=True,
            **(sampling if decoding.temperature > 0 else {}),
        )
        # Models such as Whisper override `generate` with one that reads their own inputs only.
        found: Any = GenerationMixin.generate(
            self.transformer,
            **inputs,
            generation_config=settings,
            synced_gpus=is_sharded(self.transformer) and torch.distributed.get_world_size() > 1,
        )
        tokens: torch.Tensor = found
        return tokens


class CausalModel(LanguageModel):
    """A causal language model."""

    auto_class = "AutoModelForCausalLM"

    def hidden_states(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states, float (batch, tokens, width), of sequences padded on the right.

        embeddings: float (batch, tokens, width); mask: bool (batch, tokens).
        """
        decoder = getattr(self.transformer, self.transformer.base_model_prefix)
        found: torch.Tensor = decoder(
            inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        return found

    def generate(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor,
        stop_ids: Sequence[int],
        max_tokens: int,
        decoding: DecodingConfig,
    ) -> torch.Tensor:
        """Generate up to `max_tokens` tokens after prompts padded on the left, int64 (batch, tokens).

        A reply ends at the first of `stop_ids`, and is padded with it. embeddings: float (batch, tokens, width); mask:
        bool (batch, tokens). With weights sharded over ranks, all of them generate until the longest reply of any rank
        has ended.
        """
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask.long()}
        return self._generate(inputs, stop_ids, max_tokens, decoding)


class VisionLanguageModel(CausalModel):
    """The language model of a vision–language model; its image part is the encoder of an input of the job."""

    auto_class = "AutoModelForImageTextToText"

    def _load(self) -> Any:
        return keep_language_part(super()._load())

    @staticmethod
    def encoder_of(whole: Any) -> Any:
        """Return the part of a complete model that has the encoder of an input."""
        return whole.model

    def _finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits as they are, also of a language model that changes them where it is alone."""
        return logits


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of a model are sharded over ranks, as under ZeRO stage 3."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _set_trainable(model: Any, options: PretrainedModelConfig) -> Any:
    if options.adapter is not None:
        return apply_adapters(model, options.adapter)
    if options.last_layers is not None:
        unfreeze_last_layers(model, options.last_layers)
    elif options.frozen:
        model.requires_grad_(False)
    return model


def _stop_ids(model: Any) -> list[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return [found] if isinstance(found, int) else list(found or [])


def _reset_generation_config(model: Any) -> None:
    """Remove the model's own settings, such as sampling, which would complement those of the task."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    with suppress(AttributeError):
        model.config.use_cache = False


def _scale_and_cap(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Scale and cap logits as the models with such settings do after their output layer."""
    text = config.get_text_config()
    if cap := getattr(text, "final_logit_softcapping", None):  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    if scale := getattr(text, "logit_scale", None):  # Cohere
        logits = logits * scale
    if divisor := getattr(text, "logits_scaling", None):  # Granite
        logits = logits / divisor
    return logits
