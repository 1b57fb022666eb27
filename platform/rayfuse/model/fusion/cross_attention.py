"""Inputs that query the others."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import AttentionLayer, looks_by_input
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import CrossAttentionFusion as Options


class CrossAttentionFusion(FusionModule):
    """Crossmodal transformers (Tsai et al., 2019): tokens of each querying input attend to those of all others.

    As there, every layer looks at the others' tokens as they came. A learned token that is always there is what
    is found where no other input is. A summary token then attends to the tokens of all inputs, so that a sample
    without the querying ones is answered as well; its attention is what is reported.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.asking = [name for name in inputs if name in (options.query or inputs)]
        self.marks = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.nothing = nn.Parameter(torch.randn(dim) * 0.02)
        self.summary = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(AttentionLayer(dim, options.heads, options.dropout) for _ in range(options.layers))
            for _ in self.asking
        )
        self.readout = AttentionLayer(dim, options.heads, options.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        marked = {
            name: (tokens + mark, mask)
            for (name, (tokens, mask)), mark in zip(inputs.items(), self.marks, strict=True)
        }
        streams = dict(marked)
        for name, layers in zip(self.asking, self.layers, strict=True):
            others = [part for other, part in marked.items() if other != name]
            context, mask = _after(self.nothing, others)
            tokens, own_mask = marked[name]
            for layer in layers:  # type: ignore[attr-defined]
                tokens, _ = layer(tokens, context, mask)
            streams[name] = tokens, own_mask
        tokens, mask = _after(self.summary, list(streams.values()))
        summary, looks = self.readout(tokens[:, :1], tokens, mask)
        return {"vector": self.norm(summary[:, 0]), "attention": looks_by_input(looks[:, 1:], inputs)}


def _after(first: torch.Tensor, parts: Sequence[Tokens]) -> Tokens:
    """The tokens of all parts behind one that always counts."""
    batch = len(parts[0][0])
    always = torch.ones(batch, 1, dtype=torch.bool, device=first.device)
    tokens = torch.cat([first.expand(batch, 1, -1), *(tokens for tokens, _ in parts)], dim=1)
    return tokens, torch.cat([always, *(mask for _, mask in parts)], dim=1)
