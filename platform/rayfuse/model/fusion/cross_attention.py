"""Cross-attention fusion."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.model.fusion.base import FusionModule, FusionOutput
from rayfuse.model.fusion.layers import AttentionLayer, attention_per_input
from rayfuse.model.tokens import Tokens
from rayfuse.spec.fusion import CrossAttentionFusionConfig as Options


class CrossAttentionFusion(FusionModule):
    """Crossmodal transformers (Tsai et al., 2019): tokens of each query input attend to those of all others.

    As in the paper, every layer attends to the original tokens of the other inputs. A learned null token is attended
    to if no other input is present. A class token finally attends to the tokens of all inputs, so samples without the
    query inputs are predicted, too; its attention is returned.
    """

    def __init__(self, options: Options, dim: int, inputs: Sequence[str]) -> None:
        super().__init__(options, dim, inputs)
        self.query_inputs = [name for name in inputs if name in (options.query or inputs)]
        self.input_embeddings = nn.Parameter(torch.randn(len(inputs), dim) * 0.02)
        self.null_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(AttentionLayer(dim, options.heads, options.dropout) for _ in range(options.layers))
            for _ in self.query_inputs
        )
        self.readout = AttentionLayer(dim, options.heads, options.dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        embedded = {
            name: (tokens + embedding, mask)
            for (name, (tokens, mask)), embedding in zip(inputs.items(), self.input_embeddings, strict=True)
        }
        streams = dict(embedded)
        for name, layers in zip(self.query_inputs, self.layers, strict=True):
            others = [part for other, part in embedded.items() if other != name]
            context, mask = _prepend_token(self.null_token, others)
            tokens, query_mask = embedded[name]
            for layer in layers:  # type: ignore[attr-defined]
                tokens, _ = layer(tokens, context, mask)
            streams[name] = tokens, query_mask
        tokens, mask = _prepend_token(self.cls_token, list(streams.values()))
        summary, attention = self.readout(tokens[:, :1], tokens, mask)
        return {
            "vector": self.norm(summary[:, 0]),
            "attention": attention_per_input(attention[:, 1:], inputs),
        }


def _prepend_token(token: torch.Tensor, parts: Sequence[Tokens]) -> Tokens:
    """Concatenate the tokens of all parts after one unmasked token."""
    batch = parts[0][0].shape[0]
    unmasked = torch.ones(batch, 1, dtype=torch.bool, device=token.device)
    tokens = torch.cat([token.expand(batch, 1, -1), *(tokens for tokens, _ in parts)], dim=1)
    return tokens, torch.cat([unmasked, *(mask for _, mask in parts)], dim=1)
