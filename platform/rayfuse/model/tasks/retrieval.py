"""Finding one input by the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.gathering import gather_rows
from rayfuse.model.tasks.pairs import PairHead, PairVectors, unpacked, unpacked_arrays
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import RetrievalTask
from rayfuse.spec.tasks.retrieval import DEPTHS

_FIRST_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0  # as in CLIP
_NEIGHBOURS = 10
"""How many of the bank's rows tell how much of a hub a vector is; as in Conneau et al., 2018."""
_BLOCK = 1024
"""Rows that are compared with all others at a time."""


class RetrievalHead(PairHead):
    """The likeness of a pair is its cosine; the loss sees it over a learned temperature.

    Outputs: see PairHead. targets: two numbers that stand for what a row belongs to, NaN for itself alone (batch, 2).
    Training compares the rows of all workers; rows that lack one of the inputs do not count.
    """

    target_width = 2
    bank: torch.Tensor

    def __init__(self, options: RetrievalTask, dim: int) -> None:
        super().__init__(options, dim)
        self.inputs, self.kind = options.inputs, options.loss
        self.hardness, self.margin = options.hardness, options.margin
        self.vectors = PairVectors(options, dim)
        self.register_buffer("bank", torch.zeros(2, options.bank, options.dim))
        scale = torch.full((1,), _FIRST_SCALE).log()
        self.log_scale = nn.Parameter(scale, requires_grad=self.kind != "cosine")

    def forward(self, fused: Fused) -> torch.Tensor:
        vectors, there = self.vectors(fused)
        scaled = vectors[:, 0] * self.log_scale.exp().clamp(max=_LARGEST_SCALE)
        return self.packed(torch.stack([scaled, vectors[:, 1]], dim=1), there, fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean of both directions; 0 for a row without a pair."""
        if self.kind == "cosine":
            first, second, there = unpacked(outputs)
            return (1 - nn.functional.cosine_similarity(first, second, dim=1)) * there
        mine = torch.cat([outputs.float().flatten(1), targets.float()], dim=1)
        rows, start = gather_rows(mine) if self.training else (mine, 0)
        belongs, all_belong = targets, rows[:, -self.target_width :]
        first, second, there = unpacked(outputs)
        all_first, all_second, whole = unpacked(rows[:, : -self.target_width].unflatten(1, outputs.shape[1:]))
        own = torch.arange(len(first), device=first.device) + start
        same = (belongs.unsqueeze(1) == all_belong.unsqueeze(0)).all(dim=2)
        negatives = whole.unsqueeze(0) & ~same
        negatives[torch.arange(len(own)), own] = False
        scale = all_first.detach().norm(dim=1).mean().clamp(min=1e-6)
        both = [
            self._direction(logits, own, negatives, scale)
            for logits in (first @ all_second.T, second @ all_first.T)
        ]
        return (both[0] + both[1]) / 2 * there

    def _direction(
        self, logits: torch.Tensor, own: torch.Tensor, negatives: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Loss of each row as a query. logits: (rows, candidates); own: each row's right answer; scale: of the logits."""
        if self.kind == "max_violation":
            cosines = logits / scale
            hardest = cosines.masked_fill(~negatives, -torch.inf).amax(dim=1)
            return (self.margin + hardest - cosines.gather(1, own.unsqueeze(1)).squeeze(1)).clamp(min=0)
        if self.hardness:
            logits = logits + _hard_weights(logits.detach() / scale * self.hardness, negatives).log()
        candidates = negatives.scatter(1, own.unsqueeze(1), True)
        return nn.functional.cross_entropy(logits.masked_fill(~candidates, -torch.inf), own, reduction="none")

    @property
    def remembers(self) -> int:
        return self.bank.shape[1]

    def remember(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Fill the bank with the vectors of training rows that have both inputs; what stays empty counts for nothing."""
        *sides, there = unpacked_arrays(outputs)
        kept = [_of_length_1(vectors[there][: self.remembers]) for vectors in sides]
        kept = [np.pad(vectors, ((0, self.remembers - len(vectors)), (0, 0))) for vectors in kept]
        bank = np.stack(kept).astype(np.float32)
        self.bank.copy_(torch.from_numpy(bank))
        return {"bank": bank}

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"embeddings": {input: its vector, of length 1}, "similarity": the cosine, null where an input is absent}.

        With a bank also "hubness": {input: its mean cosine to its nearest in the bank}: whoever compares embeddings
        subtracts half of both from their cosine.
        """
        vectors = nn.functional.normalize(outputs[:, :, :-1].float(), dim=2)
        there = (outputs[:, :, -1] > 0.5).tolist()
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(dim=1).tolist()
        hubs = self._hubness(vectors.detach().cpu().numpy()).tolist()
        return [
            {
                "embeddings": self._named(pair, present),
                "similarity": cosine if all(present) else None,
                **({"hubness": self._named(both, present)} if self.remembers else {}),
            }
            for pair, present, cosine, both in zip(vectors.tolist(), there, cosines, hubs, strict=True)
        ]

    def _named(self, values: Sequence[Any], present: Sequence[bool]) -> dict[str, Any]:
        return {
            name: value
            for name, value, is_there in zip(self.inputs, values, present, strict=True)
            if is_there
        }

    def _without_hubs(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors whose products are 2 · cosine - both hubnesses; the asking side's is the same for all candidates."""
        hubs = self._hubness(np.stack([first, second], axis=1))
        ones = np.ones((len(first), 1))
        return (
            np.concatenate([2 * first, -hubs[:, :1], ones], axis=1),
            np.concatenate([second, ones, -hubs[:, 1:]], axis=1),
        )

    def _hubness(self, vectors: np.ndarray) -> np.ndarray:
        """How near vectors of length 1 (rows, 2, width) are to their nearest in the bank of the other side: (rows, 2)."""
        if not self.remembers:
            return np.zeros(vectors.shape[:2], dtype=np.float32)
        bank = self.bank.cpu().numpy()
        return np.stack([_nearness(vectors[:, side], bank[1 - side]) for side in (0, 1)], axis=1)

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """R@1, 5 and 10 and the median rank among all rows with both inputs: `forward` the first input asks and the
        second is found, `backward` the other way round, and the mean of both.

        Without any such row, nothing is found.
        """
        ways = dict(zip(("forward", "backward"), self._ranks(outputs, targets), strict=True))
        found = {way: _summary(ranks, len(outputs)) for way, ranks in ways.items()}
        both = {name: (value + found["backward"][name]) / 2 for name, value in found["forward"].items()}
        return both | {f"{way}_{name}": v for way, part in found.items() for name, v in part.items()}

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """How many rows were compared, and the temperature that was learned (null where there were none, or is none)."""
        first, _, there = unpacked_arrays(outputs)
        scales = np.linalg.norm(first[there], axis=1)
        learned = 1 / float(scales.mean()) if len(scales) and self.kind != "cosine" else None
        return {"candidates": len(scales), "learned_temperature": learned}

    def _ranks(self, outputs: np.ndarray, targets: np.ndarray) -> Sequence[np.ndarray]:
        """For each row with a pair the rank of its best right answer, in both directions, float (rows,)."""
        first, second, there = unpacked_arrays(outputs)
        first, second, belongs = first[there], second[there], targets[there]
        if self.remembers:
            first, second = self._without_hubs(_of_length_1(first), _of_length_1(second))
        return [ranks_of(first, second, belongs), ranks_of(second, first, belongs)]


def _of_length_1(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def _nearness(vectors: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """The mean cosine of each vector (rows, width) to its nearest in a bank (entries, width): (rows,)."""
    count = min(_NEIGHBOURS, len(bank))
    blocks = [
        np.partition(vectors[start : start + _BLOCK] @ bank.T, -count, axis=1)[:, -count:].mean(axis=1)
        for start in range(0, len(vectors), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=vectors.dtype)


def _hard_weights(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Weights of negatives by exp(score), 1 on average for each row; 1 for what is no negative."""
    shares = scores.masked_fill(~negatives, -torch.inf).softmax(dim=1)
    weights = shares * negatives.sum(dim=1, keepdim=True)
    return torch.where(negatives, weights.clamp(min=1e-12), 1.0)


def ranks_of(queries: np.ndarray, candidates: np.ndarray, belongs: np.ndarray) -> np.ndarray:
    """The rank, from 1, of each query's best right answer among all candidates, float (rows,).

    A right answer is the candidate of its own row, or of a row that belongs to the same. Candidates that are exactly
    as alike count by half, so that a model for which all are alike finds nothing.
    """
    found = [
        _block_ranks(queries[start : start + _BLOCK], candidates, belongs, start)
        for start in range(0, len(queries), _BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0)


def _block_ranks(queries: np.ndarray, candidates: np.ndarray, belongs: np.ndarray, start: int) -> np.ndarray:
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    rows = np.arange(len(queries))
    right = (belongs[start : start + len(queries), None] == belongs[None]).all(axis=2)
    right[rows, rows + start] = True
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    wrong = ~right
    return 1 + ((scores > best) & wrong).sum(axis=1) + ((scores == best) & wrong).sum(axis=1) / 2


def _summary(ranks: np.ndarray, rows: int) -> dict[str, float]:
    if not len(ranks):
        return {**{f"r{k}": 0.0 for k in DEPTHS}, "median_rank": float(rows)}
    return {**{f"r{k}": float((ranks <= k).mean()) for k in DEPTHS}, "median_rank": float(np.median(ranks))}
