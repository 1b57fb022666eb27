"""Retrieval: finding one input by the other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.all_gather import all_gather_with_grad
from rayfuse.model.tasks.pairs import PairEmbeddings, PairHead, unpack_output_arrays, unpack_outputs
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import RetrievalTaskConfig, Target
from rayfuse.spec.tasks.retrieval import RECALL_AT_K

_INITIAL_SCALE, _MAX_SCALE = 1 / 0.07, 100.0  # as in CLIP
_CSLS_NEIGHBORS = 10
"""Nearest neighbors in the bank that measure hubness, as in CSLS (Conneau et al., 2018)."""
_MAX_SIMILARITIES = 2**22
"""Similarities of queries and candidates that are computed at a time: 34 MB."""


class RetrievalHead(PairHead):
    """Similarity of a pair: its cosine, divided by a learned temperature in the loss.

    Outputs: see PairHead. targets: two numbers that identify the group of a row, NaN for no group (batch, 2). Training
    compares the rows of all workers; rows that lack one of the inputs do not count.
    """

    target_width = 2
    csls_bank: torch.Tensor

    def __init__(self, options: RetrievalTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        self.inputs, self.kind = options.inputs, options.loss
        self.hard_negative_beta, self.margin = options.hard_negative_beta, options.margin
        self.embeddings = PairEmbeddings(options, dim)
        self.register_buffer("csls_bank", torch.zeros(2, options.csls_bank, options.dim))
        scale = torch.full((1,), _INITIAL_SCALE).log()
        self.log_scale = nn.Parameter(scale, requires_grad=self.kind != "cosine")

    def forward(self, fused: FusedState) -> torch.Tensor:
        vectors, present = self.embeddings(fused)
        scaled = vectors[:, 0] * self.log_scale.exp().clamp(max=_MAX_SCALE)
        return self.pack_outputs(torch.stack([scaled, vectors[:, 1]], dim=1), present, fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of both directions, float32 (batch,); 0 for a row without a pair."""
        if self.kind == "cosine":
            first, second, present = unpack_outputs(outputs)
            return (1 - nn.functional.cosine_similarity(first, second, dim=1)) * present
        mine = torch.cat([outputs.float().flatten(1), targets.float()], dim=1)
        rows, start = all_gather_with_grad(mine) if self.training else (mine, 0)
        groups, all_groups = targets, rows[:, -self.target_width :]
        first, second, present = unpack_outputs(outputs)
        all_first, all_second, complete = unpack_outputs(
            rows[:, : -self.target_width].unflatten(1, outputs.shape[1:])
        )
        own = torch.arange(len(first), device=first.device) + start
        same = (groups.unsqueeze(1) == all_groups.unsqueeze(0)).all(dim=2)
        negatives = complete.unsqueeze(0) & ~same
        negatives[torch.arange(len(own)), own] = False
        scale = all_first.detach().norm(dim=1).mean().clamp(min=1e-6)
        both = [
            self.direction_loss(logits, own, negatives, scale)
            for logits in (first @ all_second.T, second @ all_first.T)
        ]
        return (both[0] + both[1]) / 2 * present

    def direction_loss(
        self, logits: torch.Tensor, positive_index: torch.Tensor, negatives: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss of each row as a query.

        logits: (rows, candidates); positive_index: the matching candidate of each row; scale: of the logits.
        """
        if self.kind == "max_violation":
            cosines = logits / scale
            hardest = cosines.masked_fill(~negatives, -torch.inf).amax(dim=1)
            return (self.margin + hardest - cosines.gather(1, positive_index.unsqueeze(1)).squeeze(1)).clamp(
                min=0
            )
        if self.hard_negative_beta:
            logits = (
                logits
                + _hard_negative_weights(logits.detach() / scale * self.hard_negative_beta, negatives).log()
            )
        candidates = negatives.scatter(1, positive_index.unsqueeze(1), True)
        return nn.functional.cross_entropy(
            logits.masked_fill(~candidates, -torch.inf), positive_index, reduction="none"
        )

    @property
    def memory_bank_size(self) -> int:
        return self.csls_bank.shape[1]

    def fill_memory_bank(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Fill the bank with the vectors of training rows that have both inputs, padded with zeros."""
        *sides, present = unpack_output_arrays(outputs)
        kept = [_normalize(vectors[present][: self.memory_bank_size]) for vectors in sides]
        kept = [np.pad(vectors, ((0, self.memory_bank_size - len(vectors)), (0, 0))) for vectors in kept]
        bank = np.stack(kept).astype(np.float32)
        self.csls_bank.copy_(torch.from_numpy(bank))
        return {"csls_bank": bank}

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"embeddings": {input: unit vector}, "similarity": cosine, None if an input is absent}.

        With a bank also "hubness": {input: mean cosine to its nearest neighbors in the bank}; subtract half of both
        from the cosine to compare embeddings with CSLS.
        """
        vectors = nn.functional.normalize(outputs[:, :, :-1].float(), dim=2)
        presence = (outputs[:, :, -1] > 0.5).tolist()
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(dim=1).tolist()
        hubs = self._hubness(vectors.detach().cpu().numpy()).tolist()
        return [
            {
                "embeddings": self._by_present_input(pair, present),
                "similarity": cosine if all(present) else None,
                **({"hubness": self._by_present_input(both, present)} if self.memory_bank_size else {}),
            }
            for pair, present, cosine, both in zip(vectors.tolist(), presence, cosines, hubs, strict=True)
        ]

    @classmethod
    def response_schema(cls, config: RetrievalTaskConfig) -> Schema:
        vector = {
            "type": "array",
            "items": {"type": "number"},
            "minItems": config.dim,
            "maxItems": config.dim,
        }
        vectors = {"type": "object", "properties": dict.fromkeys(config.inputs, vector)}
        similarity = {"type": ["number", "null"], "minimum": -1.0001, "maximum": 1.0001}
        return object_schema({"embeddings": vectors, "similarity": similarity})

    @classmethod
    def dummy_target(cls, config: RetrievalTaskConfig, inputs: Mapping[str, Input]) -> Target:
        return [float("nan")] * cls.target_width

    def _by_present_input(self, values: Sequence[Any], present: Sequence[bool]) -> dict[str, Any]:
        return {
            name: value
            for name, value, is_present in zip(self.inputs, values, present, strict=True)
            if is_present
        }

    def _apply_csls(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors whose dot products are 2 · cosine - both hubnesses (CSLS)."""
        hubs = self._hubness(np.stack([first, second], axis=1))
        ones = np.ones((len(first), 1))
        return (
            np.concatenate([2 * first, -hubs[:, :1], ones], axis=1),
            np.concatenate([second, ones, -hubs[:, 1:]], axis=1),
        )

    def _hubness(self, vectors: np.ndarray) -> np.ndarray:
        """Return the mean cosine of unit vectors, (rows, 2, width), to their neighbors in the other side's bank, (rows, 2)."""
        if not self.memory_bank_size:
            return np.zeros(vectors.shape[:2], dtype=np.float32)
        bank = self.csls_bank.cpu().numpy()
        return np.stack(
            [_mean_neighbor_similarity(vectors[:, side], bank[1 - side]) for side in (0, 1)], axis=1
        )

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute R@1, 5 and 10 and the median rank among all rows with both inputs.

        `forward_*`: the first input is the query; `backward_*`: the second; without a prefix: the mean of both. Without
        any such row, recalls are 0.
        """
        ways = dict(zip(("forward", "backward"), self._ranks(outputs, targets), strict=True))
        found = {way: _recall_metrics(ranks, len(outputs)) for way, ranks in ways.items()}
        both = {name: (value + found["backward"][name]) / 2 for name, value in found["forward"].items()}
        return both | {f"{way}_{name}": v for way, part in found.items() for name, v in part.items()}

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Return the number of candidates and the learned temperature, None if there is none."""
        first, _, present = unpack_output_arrays(outputs)
        scales = np.linalg.norm(first[present], axis=1)
        learned = 1 / float(scales.mean()) if len(scales) and self.kind != "cosine" else None
        return {"candidates": len(scales), "learned_temperature": learned}

    def _ranks(self, outputs: np.ndarray, targets: np.ndarray) -> Sequence[np.ndarray]:
        """Return the rank of the best matching candidate of each row with a pair, in both directions, float (rows,)."""
        first, second, present = unpack_output_arrays(outputs)
        first, second, groups = first[present], second[present], targets[present]
        if self.memory_bank_size:
            first, second = self._apply_csls(_normalize(first), _normalize(second))
        return [retrieval_ranks(first, second, groups), retrieval_ranks(second, first, groups)]


def _normalize(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def _mean_neighbor_similarity(vectors: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Return the mean cosine of vectors, (rows, width), to their nearest neighbors in a bank, (entries, width): (rows,)."""
    count = min(_CSLS_NEIGHBORS, len(bank))
    blocks = [
        np.partition(block @ bank.T, -count, axis=1)[:, -count:].mean(axis=1)
        for _, block in _query_blocks(vectors, len(bank))
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=vectors.dtype)


def _query_blocks(queries: np.ndarray, num_candidates: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield blocks of queries, and the position of the first of each, that bound the memory of their similarities."""
    size = max(1, _MAX_SIMILARITIES // max(1, num_candidates))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size]


def _hard_negative_weights(scores: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Return weights proportional to exp(score) for negatives, with a mean of 1 per row; 1 elsewhere."""
    probabilities = scores.masked_fill(~negatives, -torch.inf).softmax(dim=1)
    weights = probabilities * negatives.sum(dim=1, keepdim=True)
    return torch.where(negatives, weights.clamp(min=1e-12), 1.0)


def retrieval_ranks(queries: np.ndarray, candidates: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """Compute the rank, from 1, of each query's best matching candidate among all candidates, float (rows,).

    The candidates of the query's row and of rows of the same group match. Candidates of exactly equal similarity count
    by half, so that a model for which all are equal has a rank in the middle.

    queries, candidates: (rows, width); group_ids: (rows, 2), NaN for no group.
    """
    columns = candidates.astype(np.float64).T
    found = [
        _block_ranks(block, columns, group_ids, start)
        for start, block in _query_blocks(queries, len(candidates))
    ]
    return np.concatenate(found) if found else np.zeros(0)


def _block_ranks(queries: np.ndarray, columns: np.ndarray, group_ids: np.ndarray, start: int) -> np.ndarray:
    scores = queries.astype(np.float64) @ columns
    rows = np.arange(len(queries))
    right = (group_ids[start : start + len(queries), None] == group_ids[None]).all(axis=2)
    right[rows, rows + start] = True
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    wrong = ~right
    return 1 + ((scores > best) & wrong).sum(axis=1) + ((scores == best) & wrong).sum(axis=1) / 2


def _recall_metrics(ranks: np.ndarray, rows: int) -> dict[str, float]:
    if not len(ranks):
        return {**{f"r{k}": 0.0 for k in RECALL_AT_K}, "median_rank": float(rows)}
    return {
        **{f"r{k}": float((ranks <= k).mean()) for k in RECALL_AT_K},
        "median_rank": float(np.median(ranks)),
    }
