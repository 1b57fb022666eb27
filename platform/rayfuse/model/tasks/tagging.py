"""A tag for every word of a text."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead, keep_fusion
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import Fused
from rayfuse.spec.tasks import TaggingTask

Chunk = tuple[int, int, str]
"""First word, word after the last, type."""


class TaggingHead(TaskHead):
    """Logits (batch, words, tags), and behind them 1 where the word was read, 0 where it was cut off or is padding.

    A word is seen through the token with which it begins. targets: indices of tags (batch, words).
    """

    def __init__(self, options: TaggingTask, dim: int) -> None:
        super().__init__(options, dim)
        assert options.entities is not None, "the job's tasks are not fitted yet"
        self.input, self.tags, self.types = options.input, options.tags, options.entities
        self.criterion = ClassCriterion(options, self.tags)
        self.linear = nn.Linear(dim, len(self.tags))

    def forward(self, fused: Fused) -> torch.Tensor:
        tokens, mask = fused["inputs"][self.input]
        starts = fused["words"].get(self.input)
        if starts is None:  # no sample of the batch has the input
            starts = torch.full((len(tokens), 1), -1, device=tokens.device)
        inside = starts.clamp(min=0, max=tokens.shape[1] - 1)
        read = (starts >= 0) & mask.gather(1, inside)
        words = tokens.gather(1, inside.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        logits = self.linear(words).float() * read.unsqueeze(2)
        return keep_fusion(torch.cat([logits, read.unsqueeze(2).float()], dim=2), fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean over the words of each sample that were read."""
        words = min(outputs.shape[1], targets.shape[1])
        outputs, targets = outputs[:, :words], targets[:, :words]
        counted = (outputs[:, :, -1] > 0.5) & ~targets.isnan()
        logits = outputs[:, :, :-1].flatten(0, 1)
        wanted = targets.nan_to_num().long().flatten()
        losses = self.criterion.multiclass(logits, wanted).view(counted.shape) * counted
        return losses.sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def blend(self, outputs: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """Any of them: they are made from the words themselves, and so are all the same."""
        return outputs[:, 0]

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence of the tags' probabilities, the mean over the words that both have read."""
        read = (outputs[:, :, -1] > 0.5) & (target_outputs[:, :, -1] > 0.5)
        found = outputs[:, :, :-1].float().log_softmax(dim=2)
        wanted = target_outputs[:, :, :-1].float().log_softmax(dim=2)
        words = nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=2) * read
        return words.sum(dim=1) / read.sum(dim=1).clamp(min=1)

    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """{"tags": one for each word, "entities": [{"type", "start", "end"}]}: words from `start` to before `end`.

        Words at the end that were cut off have no tag.
        """
        found = []
        for chosen, read in zip(*self._chosen(outputs.float().cpu().numpy()), strict=True):
            length = int(read.nonzero()[0].max()) + 1 if read.any() else 0
            tags = [self.tags[i] for i in chosen[:length]]
            entities = [{"type": kind, "start": start, "end": end} for start, end, kind in chunks(tags)]
            found.append({"tags": tags, "entities": entities})
        return found

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy over words; precision, recall and F1 over entities, as conlleval counts them.

        A word that was cut off counts as answered with O.
        """
        predicted, true = self._sequences(outputs, targets)
        words = [pair for rows in zip(predicted, true, strict=True) for pair in zip(*rows, strict=True)]
        counts = count_chunks(predicted, true)
        return {
            "accuracy": sum(a == b for a, b in words) / max(1, len(words)),
            **_scores(*(sum(kind[i] for kind in counts.values()) for i in range(3))),
        }

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """`per_class`: precision, recall and F1 of each type of entity, and how many there are (`support`)."""
        counts = count_chunks(*self._sequences(outputs, targets))
        rows = {kind: counts.get(kind, (0, 0, 0)) for kind in self.types}
        return {"per_class": {kind: {**_scores(*row), "support": row[2]} for kind, row in rows.items()}}

    def _chosen(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The index of each word's tag, and which words were read. Padding is neither."""
        read = np.nan_to_num(outputs[:, :, -1]) > 0.5
        best = np.nan_to_num(outputs[:, :, :-1]).argmax(axis=2)
        return np.where(read, best, 0), read

    def _sequences(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[list[list[str]], list[list[str]]]:
        """Predicted and true tags of each sample's words."""
        chosen, _ = self._chosen(outputs)
        lengths = (~np.isnan(targets)).sum(axis=1)
        missing = max(0, targets.shape[1] - chosen.shape[1])
        chosen = np.pad(chosen, [(0, 0), (0, missing)])
        true = np.nan_to_num(targets).astype(int)
        return (
            [[self.tags[i] for i in row[:n]] for row, n in zip(chosen, lengths, strict=True)],
            [[self.tags[i] for i in row[:n]] for row, n in zip(true, lengths, strict=True)],
        )


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The entities that tags mean, by conlleval's rules (Tjong Kim Sang and Buchholz, 2000).

    B always begins one; so does an I after O or after another type.
    """
    found: list[Chunk] = []
    start, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        if kind and (mark != "I" or of != kind):
            found.append((start, i, kind))
            kind = ""
        if mark != "O" and not kind:
            start, kind = i, of
    return found


def count_chunks(
    predicted: Iterable[Sequence[str]], true: Iterable[Sequence[str]]
) -> dict[str, tuple[int, int, int]]:
    """For each type of entity how many were right (same words, same type), how many predicted, how many there are."""
    counts: dict[str, list[int]] = {}
    for guessed, real in zip(predicted, true, strict=True):
        ours, theirs = set(chunks(guessed)), set(chunks(real))
        for i, part in enumerate((ours & theirs, ours, theirs)):
            for _, _, kind in part:
                counts.setdefault(kind, [0, 0, 0])[i] += 1
    return {kind: (right, guessed, real) for kind, (right, guessed, real) in counts.items()}


def _scores(right: int, predicted: int, true: int) -> dict[str, float]:
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, true),
        "f1": 2 * right / max(1, predicted + true),
    }
