"""Prompts of a batch: the texts and soft tokens of its samples, rendered, and their embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.prompt_pieces import FileSpan, Piece, ReplyIds
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.modalities.text import decode_text
from rayfuse.model.language_model import LanguageModel
from rayfuse.model.slot_decoding import PromptSpans
from rayfuse.model.tasks.text_decoding import PromptInputs
from rayfuse.model.tokens import FusedState, Tokens


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of a batch, each a sequence of places in a pool of vectors: its text tokens, then all soft tokens."""

    token_ids: np.ndarray
    """Text tokens of all rows, int64 (tokens,): the first vectors of the pool."""
    places: list[np.ndarray]
    """Places of each row's vectors, int64 (length,)."""
    replies: list[list[tuple[int, ReplyIds]]]
    """Replies in earlier turns of each row, with the position of their first token."""

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64 (rows,)."""
        return np.array([len(row) for row in self.places])

    def pad(self, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places padded to the longest row, int64 (rows, longest), and their mask, bool (rows, longest)."""
        longest = int(self.lengths.max())
        columns = np.arange(longest)
        from_end = columns[::-1] if left else columns
        mask = from_end < self.lengths[:, None]
        index = np.zeros(mask.shape, dtype=np.int64)
        index[mask] = np.concatenate(self.places)
        return torch.from_numpy(index), torch.from_numpy(mask)


class PromptLayout:
    """Rendered prompts of samples, and their embeddings, for one generation task.

    projector: map of aligned tokens to the width of the language model; None for prompts without soft tokens.
    """

    def __init__(self, renderer: PromptRenderer, lm: LanguageModel, projector: nn.Module | None) -> None:
        self._renderer = renderer
        self._lm = lm
        self._projector = projector

    def span_masks(self, fused: FusedState) -> dict[str, np.ndarray]:
        """Return which soft tokens each sample has, by input: bool (batch, tokens)."""
        return {name: self.span_tokens(fused, name)[1].cpu().numpy() for name in self._renderer.span_inputs}

    def span_tokens(self, fused: FusedState, name: str) -> Tokens:
        """Return the tokens of an input in the prompt: as its encoder returns them, or aligned."""
        return fused["encoded" if name in self._renderer.encoded_inputs else "inputs"][name]

    def texts(self, fused: FusedState) -> list[dict[str, str]]:
        """Return the texts of each sample's prompt, by input; absent ones are left out."""
        found: list[dict[str, str]] = [{} for _ in range(len(fused["vector"]))]
        for name in self._renderer.text_inputs:
            if name not in fused.get("texts", {}):
                continue
            present = fused["inputs"][name][1].any(dim=1).tolist()
            for row, content in enumerate(fused["texts"][name].cpu().numpy()):
                if present[row]:
                    found[row][name] = decode_text(content)
        return found

    def inputs(self, fused: FusedState) -> list[PromptInputs]:
        """Return the inputs of each sample's prompt."""
        soft = {name: self._soft_tokens(fused, name) for name in self._renderer.span_inputs}
        return [
            PromptInputs(
                texts,
                {name: vectors[row][mask[row]] for name, (vectors, mask) in soft.items() if mask[row].any()},
                files={
                    name: [one[present] for one, present in _items(fused, name, soft[name], row)]
                    for name in self._renderer.part_inputs.values()
                },
            )
            for row, texts in enumerate(self.texts(fused))
        ]

    def spans(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> PromptSpans:
        """Return the prompt of one sample. Raises InvalidInputError for a dialogue that cannot be rendered."""
        pieces = self._render(inputs.texts, frozenset(inputs.soft_tokens), dialogue)
        return [_span(inputs, one) for one in pieces if one]

    def lay_out(self, fused: FusedState, replies: Sequence[Sequence[int]] | None = None) -> PromptBatch:
        """Lay out prompts, each followed by the tokens of a reply if there are replies, in a pool of vectors."""
        spans = self.span_masks(fused)
        rendered = self._rendered(fused)
        if replies is not None:
            rendered = [[*pieces, list(reply)] for pieces, reply in zip(rendered, replies, strict=True)]
        text_pieces = [piece for pieces in rendered for piece in pieces if isinstance(piece, list)]
        offset = sum(map(len, text_pieces))
        places_of_span = {}
        for name, mask in spans.items():
            places_of_span[name] = offset + np.arange(mask.size).reshape(mask.shape)
            offset += mask.size
        places, first = [], 0
        earlier: list[list[tuple[int, ReplyIds]]] = [[] for _ in rendered]
        for row, pieces in enumerate(rendered):
            parts: list[np.ndarray] = []
            for piece in pieces:
                if isinstance(piece, ReplyIds):
                    earlier[row].append((sum(map(len, parts)), piece))
                if isinstance(piece, FileSpan):
                    [(part, present)] = _items(
                        fused, piece.name, (places_of_span[piece.name], spans[piece.name]), row, piece.item
                    )
                    parts.append(part[present])
                elif isinstance(piece, str):
                    parts.append(places_of_span[piece][row][spans[piece][row]])
                else:
                    parts.append(np.arange(first, first + len(piece)))
                    first += len(piece)
            places.append(np.concatenate(parts))
        token_ids = np.array([token for piece in text_pieces for token in piece], dtype=np.int64)
        return PromptBatch(token_ids, places, earlier)

    def embed(
        self, fused: FusedState, prompts: PromptBatch, left: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the padded embeddings of prompts, float (batch, length, width), 0 at padding, and their mask."""
        index, mask = prompts.pad(left)
        device = fused["vector"].device
        texts = self._lm.embed(torch.from_numpy(prompts.token_ids).to(device))
        pool = texts
        if self._projector is not None:
            # Absent inputs take part, so that all parameters get a gradient and all ranks run the same modules.
            soft = [self._soft_tokens(fused, name)[0].flatten(0, 1) for name in self._renderer.span_inputs]
            soft.append(self._projector(torch.zeros_like(fused["vector"][:1])))
            pool = torch.cat([texts, *(vectors.to(texts.dtype) for vectors in soft)])
        mask = mask.to(device)
        return pool[index.to(device)] * mask.unsqueeze(2), mask

    def _soft_tokens(self, fused: FusedState, name: str) -> Tokens:
        """Return the soft tokens of an input, float (batch, tokens, width), and their mask, bool (batch, tokens)."""
        vectors, mask = self.span_tokens(fused, name)
        if self._projector is None or name in self._renderer.encoded_inputs:
            return vectors, mask
        return self._projector(vectors), mask

    def _rendered(self, fused: FusedState) -> list[list[Piece]]:
        """Return the pieces of each sample's prompt."""
        masks = self.span_masks(fused)
        return [
            self._render(texts, frozenset(name for name, mask in masks.items() if mask[row].any()))
            for row, texts in enumerate(self.texts(fused))
        ]

    def _render(
        self, texts: Mapping[str, str], spans: frozenset[str], dialogue: Dialogue | None = None
    ) -> list[Piece]:
        pieces = self._renderer.render(texts, spans, dialogue)
        # A model needs a position to predict the first token from.
        return [[self._renderer.tokenizer.eos_token_id]] if pieces == [[]] else pieces


def _items(fused: FusedState, name: str, tokens: Any, row: int, item: int | None = None) -> list[Any]:
    """Return the tokens of each item of an input in a sample, or of one of them, and their mask.

    tokens: those of all samples, (batch, tokens, …), and their mask, as tensors or arrays.
    """
    num_items = fused["items"][name].shape[1]
    size = tokens[0].shape[1] // num_items
    numbers = range(num_items) if item is None else [item]
    return [tuple(one[row][number * size : (number + 1) * size] for one in tokens) for number in numbers]


def _span(inputs: PromptInputs, piece: Piece) -> Any:
    """Return the tokens or embeddings of a piece."""
    if isinstance(piece, FileSpan):
        return inputs.files[piece.name][piece.item]
    return inputs.soft_tokens[piece] if isinstance(piece, str) else piece
