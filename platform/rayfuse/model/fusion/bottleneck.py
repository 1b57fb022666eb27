"""Inputs that exchange only what fits into a few tokens."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, Joined
from rayfuse.model.fusion.parts import AttentionLayer, equal_shares, presence
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import BottleneckFusion as Options


class BottleneckFusion(FusionModule):
    """The multimodal bottleneck transformer (Nagrani et al., 2021).

    Each input has its own layers over its tokens, a summary token and the shared bottleneck tokens; after each
    layer, the bottleneck is the mean of what the inputs that are there made of it. The vector is the mean of
    their summary tokens.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.size = options.tokens
        self.bottleneck = nn.Parameter(torch.randn(options.tokens, dim) * 0.02)
        self.summaries = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(AttentionLayer(dim, options.heads, options.dropout) for _ in inputs)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        present = presence(inputs)
        shares = equal_shares(present)
        bottleneck = self.bottleneck.expand(len(present), -1, -1)
        streams = [
            torch.cat([summary.expand(len(tokens), 1, -1), tokens], dim=1)
            for (tokens, _), summary in zip(inputs.values(), self.summaries, strict=True)
        ]
        always = torch.ones(len(present), 1 + self.size, dtype=torch.bool, device=present.device)
        masks = [torch.cat([always, mask], dim=1) for _, mask in inputs.values()]
        for layers in self.layers:
            widened = [
                self._step(layer, stream, bottleneck, mask)
                for layer, stream, mask in zip(layers, streams, masks, strict=True)  # type: ignore[call-overload]
            ]
            streams = [tokens[:, self.size :] for tokens in widened]
            exchanged = torch.stack([tokens[:, : self.size] for tokens in widened], dim=1)
            mean = (exchanged * shares[:, :, None, None]).sum(dim=1)
            bottleneck = torch.where(present.any(dim=1)[:, None, None], mean, bottleneck)
        summaries = torch.stack([stream[:, 0] for stream in streams], dim=1)
        return {"vector": self.norm((summaries * shares.unsqueeze(2)).sum(dim=1))}

    def _step(
        self, layer: nn.Module, stream: torch.Tensor, bottleneck: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        tokens = torch.cat([bottleneck, stream], dim=1)
        return layer(tokens, tokens, mask)[0]
