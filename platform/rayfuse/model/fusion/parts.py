"""What several fusions are made of."""

import torch
from torch import nn

from rayfuse.model.tokens import Tokens, mean_token
from rayfuse.spec.fusion import PerceptronFusion


def means(inputs: dict[str, Tokens]) -> torch.Tensor:
    """Each input's mean over its tokens, float (batch, inputs, dim); its placeholder where it is absent."""
    return torch.stack([mean_token(tokens, mask) for tokens, mask in inputs.values()], dim=1)


def presence(inputs: dict[str, Tokens]) -> torch.Tensor:
    """Which inputs each sample has, bool (batch, inputs)."""
    return torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1)


def present_means(inputs: dict[str, Tokens]) -> Tokens:
    """Each input's mean over its tokens, float (batch, inputs, dim), 0 where it is absent; and which are present."""
    present = presence(inputs)
    return means(inputs).masked_fill(~present.unsqueeze(2), 0.0), present


def side_by_side(vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(batch, inputs, dim) and bool (batch, inputs) → (batch, inputs · (dim + 1)): all, and a number for presence."""
    return torch.cat([vectors, present.to(vectors.dtype).unsqueeze(2)], dim=2).flatten(1)


def shares(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax over the inputs that a sample has: float (batch, inputs, …), 0 for absent ones.

    scores: float (batch, inputs, …); present: bool (batch, inputs). A sample without any input gets zeros.
    """
    absent = ~present.view(*present.shape, *[1] * (scores.ndim - 2))
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(absent, lowest).softmax(dim=1).masked_fill(absent, 0.0)


def equal_shares(present: torch.Tensor) -> torch.Tensor:
    """float (batch, inputs): the same for each input that a sample has, 0 for absent ones."""
    return shares(torch.zeros(present.shape, device=present.device), present)


def perceptron(width: int, options: PerceptronFusion, dim: int) -> nn.Sequential:
    """(rows, width) → (rows, dim) through the hidden layers that the options tell."""
    layers: list[nn.Module] = []
    for _ in range(options.layers):
        layers += [nn.Linear(width, options.hidden), nn.GELU(), nn.Dropout(options.dropout)]
        width = options.hidden
    return nn.Sequential(*layers, nn.Linear(width, dim))


class ResidualBlock(nn.Module):
    """A perceptron with one hidden layer, after layer norm, added to what came in."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + self.layers(vectors)


class Attention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al., 2017)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self, queries: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (batch, queries, dim) over a context (batch, tokens, dim) with its mask, bool (batch, tokens).

        Returns what they found, (batch, queries, dim), and how much the first query looked at each token, float
        (batch, tokens), the mean over heads, without gradient. Every sample must have a token that counts.
        """
        query, key, value = (
            layer(given).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.query, queries), (self.key, context), (self.value, context))
        )
        seen = mask[:, None, None]
        found = nn.functional.scaled_dot_product_attention(
            query, key, value, seen, dropout_p=self.dropout if self.training else 0.0
        )
        with torch.no_grad():
            scores = (query[:, :, :1] @ key.transpose(2, 3)).float() / query.shape[3] ** 0.5
            looks = scores.masked_fill(~seen, float("-inf")).softmax(dim=3).mean(dim=1)[:, 0]
        return self.output(found.transpose(1, 2).flatten(2)), looks


class AttentionLayer(nn.Module):
    """A transformer layer with the norms first: attention, then a perceptron, each added to what came in."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = ResidualBlock(dim, 4 * dim, dropout)

    def forward(
        self, tokens: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Attention`; for self-attention, the tokens are their own context."""
        found, looks = self.attention(self.norm(tokens), self.norm(context), mask)
        return self.perceptron(tokens + self.dropout(found)), looks


def looks_by_input(looks: torch.Tensor, inputs: dict[str, Tokens]) -> torch.Tensor:
    """Looks at the tokens of all inputs side by side, (batch, tokens) → at each input, (batch, inputs).

    Rows sum to 1, or 0 where a sample has no input.
    """
    sizes = [mask.shape[1] for _, mask in inputs.values()]
    sums = torch.stack([part.sum(dim=1) for part in looks.split(sizes, dim=1)], dim=1)
    return sums / sums.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)
