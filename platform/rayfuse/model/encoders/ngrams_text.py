"""Text encoder: TF-IDF-weighted sum of n-gram embeddings, possibly next to a pretrained encoder of the same text."""

import torch
from torch import nn

from rayfuse.data.cached_features import TOKENS, TOKENS_MASK
from rayfuse.modalities.ngrams import PADDING
from rayfuse.modalities.text import pretrained_features
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.tokens import Tokens, as_single_token
from rayfuse.spec.encoders import NGramsEncoderConfig
from rayfuse.spec.inputs import TextInput


class NGramsTextEncoder(Encoder):
    """Encoder of input_ids: int64 (rows, n-grams), 0 for padding; weights: float (rows, n-grams), 0 for padding.

    Returns (rows, 1, `hidden_size`), the weighted sum of the embeddings (fastText; Joulin et al., 2017). With a
    pretrained encoder, its vector, scaled to mean 0 and standard deviation 1, follows: (rows, 1, `hidden_size` + its
    width). It reads features named as in `TextModality`, or is replaced by its cached outputs.
    """

    def __init__(self, options: NGramsEncoderConfig, source: TextInput) -> None:
        super().__init__(options, source)
        assert options.vocabulary is not None, "fit the job on training rows first"
        size = options.hidden_size
        self.embedding = nn.Embedding(len(options.vocabulary) + 1, size, padding_idx=PADDING)
        with torch.no_grad():  # as fastText: small, so that few steps of Adam outweigh it
            self.embedding.weight[PADDING + 1 :].uniform_(-1 / size, 1 / size)
        self.dropout = nn.Dropout(options.dropout)
        self.pretrained = self._build_pretrained(options, source)
        self.width = size if self.pretrained is None else size + self.pretrained.width

    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor, weights: torch.Tensor, **others: torch.Tensor
    ) -> Tokens:
        embedded = self.embedding(input_ids)
        vectors = torch.matmul(weights.to(embedded.dtype).unsqueeze(1), embedded).squeeze(1)
        if self.pretrained is not None:
            tokens, _ = _cached_or_encoded(self.pretrained, others)
            scaled = nn.functional.layer_norm(tokens[:, 0].to(vectors.dtype), tokens.shape[-1:])
            vectors = torch.cat([vectors, scaled], dim=-1)
        return as_single_token(self.dropout(vectors))

    def with_cached_outputs(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        own = {name: features[name] for name in ("input_ids", "weights")}
        assert self.pretrained is not None, "n-grams alone are trained"
        return own | self.pretrained.with_cached_outputs(pretrained_features(features))

    def _build_pretrained(self, options: NGramsEncoderConfig, source: TextInput) -> Encoder | None:
        from rayfuse.model.encoders import build_nested_encoder  # circular import

        if options.pretrained is None:
            return None
        return build_nested_encoder("text", options.pretrained, source)


def _cached_or_encoded(encoder: Encoder, features: dict[str, torch.Tensor]) -> Tokens:
    if TOKENS in features:
        return features[TOKENS], features[TOKENS_MASK]
    return encoder(**pretrained_features(features))
