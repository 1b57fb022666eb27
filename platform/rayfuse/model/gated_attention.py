"""Gated cross-attention layers between those of a causal language model, which attend to a job's inputs.

The layers are called by hooks of the language model's own layers, whose modules and parameters keep their names. Adapters,
exports and checkpoints of the language model are therefore the same as without them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rayfuse.decoding.input_memory import InputMemory, KeysValues
from rayfuse.errors import SpecError
from rayfuse.model.tokens import Tokens
from rayfuse.spec.tasks.injection import CrossAttentionInjection

if TYPE_CHECKING:
    from rayfuse.model.language_model import LanguageModel

_EXPANSION = 4
"""Hidden units of a feed-forward block, as a multiple of the width (Alayrac et al., 2022)."""

_memory: ContextVar[InputMemory | None] = ContextVar("memory", default=None)
"""Inputs that the forward passes of this thread attend to."""
_is_off: ContextVar[bool] = ContextVar("is_off", default=False)
"""True while the forward passes of this thread attend to nothing, whatever they are given."""


class InputTokens(nn.Module):
    """Aligned tokens of all inputs in one sequence, each with a learned embedding of its input, normalized."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.input_embeddings = nn.Parameter(torch.randn(count, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: Sequence[Tokens]) -> Tokens:
        """Return the tokens of all inputs, float (batch, all tokens, dim), and their mask, bool (batch, all tokens)."""
        embedded = [
            tokens + embedding for (tokens, _), embedding in zip(inputs, self.input_embeddings, strict=True)
        ]
        return self.norm(torch.cat(embedded, dim=1)), torch.cat([mask for _, mask in inputs], dim=1)


class GatedLayer(nn.Module):
    """Cross-attention and a feed-forward block, each added with the weight tanh(gate) (Alayrac et al., 2022, figure 4)."""

    def __init__(self, width: int, dim: int, options: CrossAttentionInjection) -> None:
        super().__init__()
        inner = options.heads * options.head_dim
        self.heads = options.heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(dim, inner, bias=False)
        self.value = nn.Linear(dim, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, _EXPANSION * width, bias=False),
            nn.GELU(),
            nn.Linear(_EXPANSION * width, width, bias=False),
        )
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def keys_values(self, tokens: torch.Tensor) -> KeysValues:
        """Return the keys and values, float (batch, heads, tokens, head dim), of tokens, float (batch, tokens, dim)."""
        return self._split(self.key(tokens)), self._split(self.value(tokens))

    def forward(
        self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden states, float (batch, length, width), that have attended; rows without a token are unchanged.

        keys, values: float (batch, heads, tokens, head dim); mask: bool (batch, tokens).
        """
        present = mask.any(dim=1)
        # Attention to no token would be NaN.
        mask = mask | ~present.unsqueeze(1)
        states = hidden.to(self.attention_gate.dtype)
        query = self._split(self.query(self.norm(states)))
        attended = nn.functional.scaled_dot_product_attention(
            query, keys.to(query.dtype), values.to(query.dtype), mask[:, None, None]
        )
        update = self.output(attended.transpose(1, 2).flatten(2)) * self.attention_gate.tanh()
        added = states + update
        update = update + self.feed_forward(added) * self.feed_forward_gate.tanh()
        return hidden + torch.where(present[:, None, None], update, 0.0).to(hidden.dtype)

    def _split(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GatedCrossAttention(nn.Module):
    """Gated layers before every N-th layer of a causal language model, and the tokens that they attend to."""

    def __init__(self, options: CrossAttentionInjection, dim: int, count: int, lm: "LanguageModel") -> None:
        """Add the layers to a language model, for aligned tokens of `count` inputs, of the width `dim`.

        Raises SpecError if its own layers are not found.
        """
        super().__init__()
        self.dim = dim
        chosen = _decoder_layers(lm.transformer)[options.every - 1 :: options.every]
        self.tokens = InputTokens(dim, count)
        self.layers = nn.ModuleList(GatedLayer(lm.width, dim, options) for _ in chosen)
        lm.set_input_attention(self)
        for number, layer in enumerate(chosen):
            layer.register_forward_pre_hook(partial(self._run_layer, number), with_kwargs=True)

    def keys_values(self, tokens: torch.Tensor) -> list[KeysValues]:
        """Return the keys and values of tokens, float (batch, tokens, dim), in each layer."""
        return [layer.keys_values(tokens) for layer in self.layers]  # type: ignore[operator]

    def memory(self, inputs: Sequence[Tokens]) -> InputMemory:
        """Return what the layers attend to for the aligned tokens of each input."""
        tokens, mask = self.tokens(inputs)
        return InputMemory(self.keys_values(tokens), mask)

    @contextmanager
    def attend(self, memory: InputMemory | None) -> Iterator[None]:
        """Attend to these inputs in the forward passes of this thread; None: to nothing."""
        before = _memory.set(None if _is_off.get() else memory)
        try:
            yield
        finally:
            _memory.reset(before)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the language model as it is without the layers, whatever it is to attend to."""
        before = _is_off.set(True)
        try:
            yield
        finally:
            _is_off.reset(before)

    def _run_layer(self, number: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a gated layer on the hidden states of a layer's arguments."""
        # Activation checkpointing of transformers computes `forward` again, without its hooks.
        memory = _memory.get()
        if memory is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = self._attend(number, hidden, memory)
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def _attend(self, number: int, hidden: torch.Tensor, memory: InputMemory) -> torch.Tensor:
        keys, values = memory.layers[number]
        copies = len(hidden) // len(keys)  # beams of a row follow each other
        found: torch.Tensor = self.layers[number](
            hidden,
            *(
                part.repeat_interleave(copies, 0) if copies > 1 else part
                for part in (keys, values, memory.mask)
            ),
        )
        return found


def _decoder_layers(transformer: Any) -> list[nn.Module]:
    """Return the layers of a causal language model. Raises SpecError if they are not found."""
    count = transformer.config.get_text_config().num_hidden_layers
    for module in transformer.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise SpecError(
        f"inject: a {type(transformer).__name__} has no list of {count} layers to which cross-attention could be added; use "
        "inject: soft_tokens"
    )
