"""A prompt as spans of token ids and of input embeddings."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from itertools import chain

import torch

from rayfuse.decoding.request import Span
from rayfuse.errors import InvalidInputError


class Prompt:
    """Positions of a prompt, each a token or an embedding.

    `keys` has one hashable value per position: equal keys in front of two prompts mean equal keys and values in the
    cache. A token's key is its id; an embedding's is its place in its span and a digest of that span. The first key has
    a digest of `states`, to which all positions attend.
    """

    def __init__(
        self,
        spans: Span | Sequence[Span],
        *,
        hidden_size: int,
        vocab_size: int,
        states: torch.Tensor | None = None,
    ) -> None:
        self.spans = [_checked(span, hidden_size, vocab_size) for span in _as_spans(spans)]
        self.keys: list[Hashable] = list(chain.from_iterable(map(_keys_of, self.spans)))
        if states is not None and self.keys:
            self.keys[0] = (_digest(states), self.keys[0])
        self.only_tokens = all(isinstance(span, list) for span in self.spans)

    def __len__(self) -> int:
        return len(self.keys)

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Return the token ids of positions in a prompt that has only tokens."""
        ids = chain.from_iterable(span for span in self.spans if isinstance(span, list))
        return list(ids)[start:stop]

    def embeddings(self, start: int, stop: int, embed: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Return the input embeddings of positions, shape (stop - start, hidden); `embed` maps token ids to theirs."""
        parts = []
        offset = 0
        for span in self.spans:
            part = span[max(0, start - offset) : max(0, stop - offset)]
            offset += len(span)
            if len(part):
                parts.append(embed(part) if isinstance(part, list) else part)
        model_like = embed([0])
        return torch.cat([part.to(model_like) for part in parts])


def prompt_length(prompt: Span | Sequence[Span]) -> int:
    """Return the number of positions of a prompt."""
    return sum(map(len, _as_spans(prompt)))


def _as_spans(prompt: Span | Sequence[Span]) -> list[Span]:
    if isinstance(prompt, torch.Tensor):
        return [prompt]
    if all(isinstance(part, int) for part in prompt):
        return [prompt]  # type: ignore[list-item]
    return list(prompt)  # type: ignore[arg-type]


def _checked(span: Span, hidden_size: int, vocab_size: int) -> list[int] | torch.Tensor:
    if isinstance(span, torch.Tensor) and span.is_floating_point():
        if span.ndim != 2 or span.shape[1] != hidden_size:
            raise InvalidInputError(
                f"embeddings have the shape {tuple(span.shape)}; the model takes (length, {hidden_size})",
                "prompt",
            )
        return span.detach()
    ids = span.tolist() if isinstance(span, torch.Tensor) else [int(token) for token in span]
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise InvalidInputError(
            f"token id {outside[0]} is not in the model's vocabulary of {vocab_size}; use the model's own tokenizer",
            "prompt",
        )
    return ids


def _keys_of(span: list[int] | torch.Tensor) -> list[Hashable]:
    if isinstance(span, list):
        return list(span)
    digest = _digest(span)
    return [(digest, position) for position in range(len(span))]


def _digest(tensor: torch.Tensor) -> bytes:
    content = tensor.detach().contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest()
