"""Bottleneck fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import AttentionLayer, presence_mask, uniform_weights
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import BottleneckFusionConfig as Options


class BottleneckFusion(FusionModule):
    """Multimodal bottleneck transformer (Nagrani et al., 2021).

    Each input has its own layers over its tokens, a class token and the shared bottleneck tokens. After each layer,
    the bottleneck tokens are averaged over the inputs that are present. The vector is the mean of the class tokens of
    these inputs.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.num_bottleneck_tokens = options.num_tokens
        self.bottleneck_tokens = nn.Parameter(torch.randn(options.num_tokens, dim) * 0.02)
        self.cls_tokens = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(AttentionLayer(dim, options.heads, options.dropout) for _ in inputs)
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        present = presence_mask(inputs)
        weights = uniform_weights(present)
        bottleneck = self.bottleneck_tokens.expand(len(present), -1, -1)
        streams = [
            torch.cat([cls_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
            for (tokens, _), cls_token in zip(inputs.values(), self.cls_tokens, strict=True)
        ]
        unmasked = torch.ones(
            len(present), 1 + self.num_bottleneck_tokens, dtype=torch.bool, device=present.device
        )
        masks = [torch.cat([unmasked, mask], dim=1) for _, mask in inputs.values()]
        for layers in self.layers:
            outputs = [
                self._step(layer, stream, bottleneck, mask)
                for layer, stream, mask in zip(layers, streams, masks, strict=True)  # type: ignore[call-overload]
            ]
            streams = [tokens[:, self.num_bottleneck_tokens :] for tokens in outputs]
            bottlenecks = torch.stack([tokens[:, : self.num_bottleneck_tokens] for tokens in outputs], dim=1)
            mean = (bottlenecks * weights[:, :, None, None]).sum(dim=1)
            bottleneck = torch.where(present.any(dim=1)[:, None, None], mean, bottleneck)
        summaries = torch.stack([stream[:, 0] for stream in streams], dim=1)
        return {"vector": self.norm((summaries * weights.unsqueeze(2)).sum(dim=1))}

    def _step(
        self, layer: nn.Module, stream: torch.Tensor, bottleneck: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        tokens = torch.cat([bottleneck, stream], dim=1)
        return layer(tokens, tokens, mask)[0]
