"""Forward passes of a language model of transformers over windows of cache slots."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from rayfuse.decoding.attention_masks import AttentionMask, additive, causal_mask
from rayfuse.decoding.input_memory import InputAttention, InputMemory, KeysValues
from rayfuse.decoding.row_positions import positions_per_row
from rayfuse.decoding.slot_cache import LayerShape, SlotCache, Window
from rayfuse.errors import InvalidInputError, SpecError

_CONTEXT_LENGTHS = ("max_target_positions", "max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Batch:
    """Tokens that a forward pass appends to the rows of a window."""

    window: Window
    ids: torch.Tensor | None
    """Token ids of shape (rows, queries); None where `embeddings` are given."""
    embeddings: torch.Tensor | None
    """Input embeddings of shape (rows, queries, hidden)."""
    last: tuple[int, ...]
    """The last query of each row; those behind repeat it."""
    adapters: tuple[str, ...] | None = None
    """PEFT adapter of each row; None: the model as it is set."""
    states: tuple[torch.Tensor | None, ...] = ()
    """Encoder states (length, hidden) of each row, for a causal model with cross-attention."""


class CrossCache(SlotCache):
    """Keys and values of the encoder's states, or of inputs, in all slots, and how many of them each slot has."""

    def __init__(self, shapes: Sequence[LayerShape], slots: int, positions: int) -> None:
        super().__init__(shapes, slots, positions)
        self.lengths = [0] * slots

    def view(self, rows: slice) -> Window:
        """Select these rows for reading."""
        lengths = tuple(self.lengths[rows])
        window = Window(rows.start, lengths, torch.empty(len(lengths), 0), max(lengths))
        self.select(window)
        return window

    def write(self, slot: int, length: int, layers: Sequence[KeysValues]) -> None:
        """Write the keys and values (1, heads, length, dimension) of each layer to a slot."""
        self.lengths[slot] = length
        self.select(Window(slot, (0,), torch.arange(length)[None], length))
        for layer, (keys, values) in zip(self._slot_layers, layers, strict=True):
            layer.update(keys, values)

    def memory(self, rows: slice) -> InputMemory | None:
        """Return the keys and values of these rows; None if all rows have none."""
        width = self.view(rows).width
        if not width:
            return None
        layers = [layer.selected for layer in self._slot_layers]
        device = layers[0][0].device
        lengths = torch.tensor(self.lengths[rows], device=device)
        return InputMemory(layers, torch.arange(width, device=device) < lengths[:, None])

    def copy(self, source: int, target: int, length: int) -> None:
        super().copy(source, target, self.lengths[source])
        self.lengths[target] = self.lengths[source]

    def swap(self, one: int, other: int, length: int) -> None:
        super().swap(one, other, max(self.lengths[one], self.lengths[other]))
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]


def base_model(model: Any) -> Any:
    """Return the model of transformers within one of PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class ModelRunner:
    """Runs a model and knows what its architecture takes.

    `model`: a causal or encoder–decoder model of transformers, one of PEFT around it, or a module with the same
    interface: `config`, `generation_config`, `dtype`, `get_input_embeddings`, and a forward that names its arguments
    (`input_ids`, `inputs_embeds`, `attention_mask` with four dimensions, `position_ids`, `past_key_values`,
    `use_cache`, and as it needs them `logits_to_keep`, `encoder_hidden_states`, `encoder_attention_mask`).
    `inputs`: layers that the model's own layers call, and that attend to a request's inputs.
    """

    def __init__(self, model: nn.Module, inputs: InputAttention | None = None) -> None:
        self.model: Any = model
        self.inputs = inputs
        self.base: Any = base_model(model)
        self.config: Any = self.base.config.get_text_config(decoder=True)
        self.is_encoder_decoder = bool(self.base.config.is_encoder_decoder)
        self._arguments = set(inspect.signature(self.base.forward).parameters)
        embedding: Any = self.base.get_input_embeddings()
        self.device: torch.device = embedding.weight.device
        self.hidden_size = int(embedding.weight.shape[1])
        self._additive_masks = getattr(self.config, "_attn_implementation", "eager") == "eager"
        self._check_arguments()
        self.layers, self.cross_layers, self.vocab_size = self._probe()

    @property
    def context_length(self) -> int | None:
        """Number of positions that the model knows; None where it has no such limit."""
        known = [getattr(self.config, name, None) for name in _CONTEXT_LENGTHS]
        return next((int(length) for length in known if length), None)

    @property
    def start_token(self) -> int | None:
        """The first token of an encoder–decoder model's decoder."""
        generation = getattr(self.base, "generation_config", None)
        values = (
            getattr(holder, "decoder_start_token_id", None) for holder in (generation, self.base.config)
        )
        return next((int(value) for value in values if value is not None), None)

    @property
    def adapters(self) -> list[str]:
        """Names of the PEFT adapters, and `__base__` for the model without one; empty if the model has none."""
        return [
            *getattr(self.model, "peft_config", ()),
            *(["__base__"] if hasattr(self.model, "peft_config") else []),
        ]

    @property
    def active_adapter(self) -> str:
        """The adapter of rows that name none."""
        return str(self.model.active_adapter)

    @property
    def takes_features(self) -> bool:
        """Return True if the encoder reads features, such as a spectrogram, instead of tokens."""
        return self.base.main_input_name != "input_ids"

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the input embeddings of tokens, shape (length, hidden)."""
        return self.base.get_input_embeddings()(torch.tensor(list(token_ids), device=self.device))

    @torch.inference_mode()
    def encode(self, source: torch.Tensor, adapter: str | None = None) -> torch.Tensor:
        """Return the encoder's states (length, hidden) of one source. Raises InvalidInputError if it has another shape."""
        source = source.to(self.device)[None]
        if self.takes_features:
            name, rank = self.base.main_input_name, 3
        elif source.is_floating_point():
            name, rank = "inputs_embeds", 3
        else:
            name, rank = "input_ids", 2
        if source.ndim != rank or not source.shape[1]:
            raise InvalidInputError(
                f"shape {tuple(source.shape[1:])} does not fit {name} of the encoder", "source"
            )
        if source.is_floating_point():
            source = source.to(self.base.dtype)
        with self._adapter(adapter):
            return self.base.get_encoder()(**{name: source}).last_hidden_state[0]

    @torch.inference_mode()
    def run(self, cache: SlotCache, batch: Batch, cross: CrossCache | None = None) -> torch.Tensor:
        """Append the tokens of a batch to the cache; return the logits (rows, vocabulary) behind each row's last."""
        cache.select(batch.window)
        if cross is None:
            return self._logits(batch, cache, self._cross_attention(batch))
        if self.inputs is not None:
            with self.inputs.attend(cross.memory(batch.window.rows)):
                return self._logits(batch, cache, {})
        source = cross.view(batch.window.rows)
        states = torch.zeros(1, 1, self.hidden_size, dtype=self.base.dtype, device=self.device)
        states = states.expand(len(source.starts), source.width, -1)
        return self._run_decoder(cache, cross, batch, states, ready=True)

    @torch.inference_mode()
    def write_inputs(self, cross: CrossCache, slot: int, tokens: torch.Tensor | None) -> None:
        """Write the keys and values of a request's inputs, tokens (length, dim), to its slot; None: it has no inputs."""
        assert self.inputs is not None, "only such models have a cache of inputs and no encoder"
        cross.lengths[slot] = 0
        if tokens is not None:
            cross.write(slot, len(tokens), self.inputs.keys_values(tokens[None].to(self.device)))

    @torch.inference_mode()
    def start(self, cache: SlotCache, batch: Batch, cross: CrossCache, states: torch.Tensor) -> torch.Tensor:
        """Write one row's encoder states (length, hidden) and the start of its decoder; return its logits (1, vocabulary)."""
        length = len(states)
        cross.lengths[batch.window.first] = length
        cross.select(Window(batch.window.first, (0,), torch.arange(length)[None], length))
        cache.select(batch.window)
        return self._run_decoder(cache, cross, batch, states[None].to(self.base.dtype), ready=False)

    def _run_decoder(
        self, cache: SlotCache, cross: CrossCache, batch: Batch, states: torch.Tensor, *, ready: bool
    ) -> torch.Tensor:
        pair = EncoderDecoderCache(cache, cross)
        pair.is_updated = dict.fromkeys(range(len(cross.layers)), ready)
        lengths = torch.tensor(cross.lengths[batch.window.rows], device=self.device)
        ragged = bool((lengths != states.shape[1]).any())
        source_mask = torch.arange(states.shape[1], device=self.device) < lengths[:, None] if ragged else None
        source = {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": source_mask}
        return self._logits(batch, pair, source)

    def _logits(self, batch: Batch, cache: Any, extra: dict[str, Any]) -> torch.Tensor:
        window = batch.window
        prefix = "decoder_" if self.is_encoder_decoder else ""
        inputs: dict[str, Any] = (
            {"input_ids": batch.ids} if batch.embeddings is None else {"inputs_embeds": batch.embeddings}
        )
        inputs |= {"attention_mask": self._mask(window), "position_ids": window.positions}
        arguments = {
            prefix + name: value for name, value in inputs.items() if prefix + name in self._arguments
        }
        if batch.adapters is not None:
            arguments["adapter_names"] = list(batch.adapters)
        last = torch.tensor(batch.last, device=self.device)
        kept = last
        if "logits_to_keep" in self._arguments:
            kept, last = torch.unique(last, return_inverse=True)
            arguments["logits_to_keep"] = kept
        own_positions = window.aligned or f"{prefix}position_ids" in self._arguments
        with nullcontext() if own_positions else positions_per_row(self.base.get_decoder(), window):
            output = self.model(**arguments, **extra, past_key_values=cache, use_cache=True)
        return output.logits[torch.arange(len(last), device=self.device), last]

    def _mask(self, window: Window) -> AttentionMask:
        """Return the mask in the form that the architecture takes; None where all rows have the same length."""
        if window.aligned:
            return None
        sliding = next((shape.sliding_window for shape in self.layers if shape.sliding_window), None)
        masks = {"full_attention": causal_mask(window), "sliding_attention": causal_mask(window, sliding)}
        if self._additive_masks:
            masks = {kind: additive(mask, self.base.dtype) for kind, mask in masks.items()}
        kinds = set(getattr(self.config, "layer_types", None) or ())
        if {"full_attention", "sliding_attention"} <= kinds:
            return masks
        return masks["sliding_attention" if sliding else "full_attention"]

    def _cross_attention(self, batch: Batch) -> dict[str, Any]:
        """Return the arguments for cross-attention of a causal model: its rows' states, padded, and their mask."""
        if all(states is None for states in batch.states):
            return {}
        rows = [torch.zeros(0, self.hidden_size) if states is None else states for states in batch.states]
        width = max(map(len, rows))
        size = next(states.shape[1] for states in batch.states if states is not None)
        padded = torch.zeros(len(rows), width, size, dtype=self.base.dtype, device=self.device)
        mask = torch.zeros(len(rows), width, dtype=torch.bool, device=self.device)
        for row, states in enumerate(rows):
            padded[row, : len(states)] = states
            mask[row, : len(states)] = True
        return {"encoder_hidden_states": padded, "encoder_attention_mask": mask}

    @contextmanager
    def _adapter(self, adapter: str | None) -> Iterator[None]:
        with (
            nullcontext()
            if adapter is None
            else self.model._enable_peft_forward_hooks(adapter_names=[adapter])
        ):
            yield

    def _check_arguments(self) -> None:
        kind = type(self.base).__name__
        if not self.is_encoder_decoder and not {"position_ids", "past_key_values"} <= self._arguments:
            raise SpecError(
                f"{kind} takes no position_ids, so that requests of different lengths cannot share a batch; choose a "
                "causal or encoder–decoder language model such as Llama, Qwen, Gemma, GPT-2, T5, BART or Whisper"
            )
        if getattr(self.config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
            raise SpecError(
                f"{kind} uses the attention {self.config._attn_implementation}, which takes no masks per row; load it "
                "with attn_implementation='sdpa'"
            )

    @torch.inference_mode()
    def _probe(self) -> tuple[list[LayerShape], list[LayerShape], int]:
        """Return the shapes of the layers' keys and values, of self- and cross-attention, from one token's pass."""
        name = "decoder_input_ids" if self.is_encoder_decoder else "input_ids"
        arguments: dict[str, Any] = {name: torch.zeros(1, 1, dtype=torch.long, device=self.device)}
        if self.is_encoder_decoder:
            states = torch.zeros(1, 1, self.hidden_size, dtype=self.base.dtype, device=self.device)
            arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=states)
        output = self.model(**arguments, use_cache=True)
        cache = output.past_key_values
        cross: list[Any] = []
        if isinstance(cache, EncoderDecoderCache):
            # A causal model with cross-attention computes the keys and values of its states in each pass.
            cross = cache.cross_attention_cache.layers if self.is_encoder_decoder else []
            cache = cache.self_attention_cache
        return (
            [self._shape(layer) for layer in cache.layers],
            [self._shape(layer) for layer in cross]
            if self.inputs is None
            else self._input_shapes(self.inputs),
            int(output.logits.shape[-1]),
        )

    def _input_shapes(self, inputs: InputAttention) -> list[LayerShape]:
        layers = inputs.keys_values(torch.zeros(1, 1, inputs.dim, device=self.device))
        return [_layer_shape(keys, values) for keys, values in layers]

    def _shape(self, layer: Any) -> LayerShape:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None:
            raise SpecError(
                f"{type(self.base).__name__} has layers of the kind {type(layer).__name__}, whose state has no slots; "
                "choose a model in which every layer computes attention, full or with a sliding window"
            )
        return _layer_shape(layer.keys, layer.values, getattr(layer, "sliding_window", None))


def _layer_shape(keys: torch.Tensor, values: torch.Tensor, sliding_window: int | None = None) -> LayerShape:
    return LayerShape(
        heads=keys.shape[1],
        key_dim=keys.shape[-1],
        value_dim=values.shape[-1],
        dtype=keys.dtype,
        device=keys.device,
        sliding_window=sliding_window,
    )
