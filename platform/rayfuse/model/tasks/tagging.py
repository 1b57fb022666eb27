"""Tagging: a tag for every word of a text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.tasks.accumulators import (
    AccumulatedHead,
    Accumulator,
    precision_recall_f1,
    scores_by_class,
)
from rayfuse.model.tasks.base import touch_fusion_params
from rayfuse.model.tasks.class_scores import label_schema
from rayfuse.model.tasks.classification import unweighted
from rayfuse.model.tasks.losses import ClassCriterion
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import TaggingTaskConfig, Target

EntitySpan = tuple[int, int, str]
"""Index of the first word, index after the last word, and type of an entity."""

_ASSUMED_ENTITIES = ["A", "B", "C", "D"]


class TaggingHead(AccumulatedHead):
    """Logits (batch, words, tags + 1); the last entry is 1 for words that were read, 0 for truncated ones and padding.

    A word is represented by its first token. targets: indices of tags (batch, words).
    """

    labels_words = True

    def __init__(self, options: TaggingTaskConfig, dim: int) -> None:
        super().__init__(options, dim)
        assert options.entities is not None, "the job's tasks are not fitted yet"
        self.input, self.tags, self.types = options.input, options.tags, options.entities
        self.criterion = ClassCriterion(options, self.tags)
        self.linear = nn.Linear(dim, len(self.tags))

    def forward(self, fused: FusedState) -> torch.Tensor:
        tokens, mask = fused["inputs"][self.input]
        starts = fused["word_starts"].get(self.input)
        if starts is None:  # no sample of the batch has the input
            starts = torch.full((len(tokens), 1), -1, device=tokens.device)
        inside = starts.clamp(min=0, max=tokens.shape[1] - 1)
        read = (starts >= 0) & mask.gather(1, inside)
        words = tokens.gather(1, inside.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        logits = self.linear(words).float() * read.unsqueeze(2)
        return touch_fusion_params(torch.cat([logits, read.unsqueeze(2).float()], dim=2), fused)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss over the words of each sample that were read, float32 (batch,)."""
        words = min(outputs.shape[1], targets.shape[1])
        outputs, targets = outputs[:, :words], targets[:, :words]
        counted = (outputs[:, :, -1] > 0.5) & ~targets.isnan()
        logits = outputs[:, :, :-1].flatten(0, 1)
        wanted = targets.nan_to_num().long().flatten()
        losses = self.criterion.multiclass(logits, wanted).view(counted.shape) * counted
        return losses.sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def combine_logits(self, outputs: torch.Tensor, decision_weights: torch.Tensor) -> torch.Tensor:
        """Return the first decision; all are equal, as outputs depend on the words alone."""
        return outputs[:, 0]

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the Kullback-Leibler divergence of the tags' probabilities, averaged over the words that both read."""
        read = (outputs[:, :, -1] > 0.5) & (target_outputs[:, :, -1] > 0.5)
        found = outputs[:, :, :-1].float().log_softmax(dim=2)
        wanted = target_outputs[:, :, :-1].float().log_softmax(dim=2)
        words = nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=2) * read
        return words.sum(dim=1) / read.sum(dim=1).clamp(min=1)

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Return {"tags": one per word, "entities": [{"type", "start", "end"}]} for each sample.

        An entity spans the words from `start` to before `end`. Truncated words have no tag.
        """
        found = []
        for chosen, read in zip(*self._predicted_tags(outputs.float().cpu().numpy()), strict=True):
            length = int(read.nonzero()[0].max()) + 1 if read.any() else 0
            tags = [self.tags[i] for i in chosen[:length]]
            entities = [
                {"type": kind, "start": start, "end": end} for start, end, kind in extract_entities(tags)
            ]
            found.append({"tags": tags, "entities": entities})
        return found

    def accumulator(self) -> "TaggingAccumulator":
        return TaggingAccumulator()

    @classmethod
    def response_schema(cls, config: TaggingTaskConfig) -> Schema:
        place = {"type": "integer", "minimum": 0}
        entity = object_schema({"type": label_schema(config.entities or ()), "start": place, "end": place})
        return object_schema(
            {
                "tags": {"type": "array", "items": label_schema(config.tags)},
                "entities": {
                    "type": "array",
                    "items": entity,
                    "description": "words from start to before end",
                },
            }
        )

    @classmethod
    def with_assumed_statistics(cls, config: TaggingTaskConfig) -> tuple[Any, list[str]]:
        """Assume 4 entity types of equal weight."""
        update = {} if config.entities is not None else {"entities": _ASSUMED_ENTITIES}
        notes = [f"{len(_ASSUMED_ENTITIES)} entities"] if update else []
        return config.model_copy(update={**update, **unweighted(config)}), notes

    @classmethod
    def dummy_target(cls, config: TaggingTaskConfig, inputs: Mapping[str, Input]) -> Target:
        source = inputs[config.input]
        return [0.0] * getattr(source, source.length_field or "")

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        return " ".join(prediction["tags"])

    def _predicted_tags(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of each word's tag, and which words were read."""
        read = np.nan_to_num(outputs[:, :, -1]) > 0.5
        best = np.nan_to_num(outputs[:, :, :-1]).argmax(axis=2)
        return np.where(read, best, 0), read

    def tag_sequences(
        self, outputs: np.ndarray, targets: np.ndarray
    ) -> tuple[list[list[str]], list[list[str]]]:
        """Return predicted and true tags of each sample's words. A truncated word counts as predicted O."""
        chosen, _ = self._predicted_tags(outputs)
        lengths = (~np.isnan(targets)).sum(axis=1)
        missing = max(0, targets.shape[1] - chosen.shape[1])
        chosen = np.pad(chosen, [(0, 0), (0, missing)])
        true = np.nan_to_num(targets).astype(int)
        return (
            [[self.tags[i] for i in row[:n]] for row, n in zip(chosen, lengths, strict=True)],
            [[self.tags[i] for i in row[:n]] for row, n in zip(true, lengths, strict=True)],
        )


class TaggingAccumulator(Accumulator[TaggingHead]):
    """Number of correct words, and of entities of each type."""

    def __init__(self) -> None:
        self._words = self._correct_words = 0
        self._entities: Counter[tuple[str, int]] = Counter()

    def update(self, head: TaggingHead, outputs: np.ndarray, targets: np.ndarray) -> None:
        predicted, true = head.tag_sequences(outputs, targets)
        words = [pair for rows in zip(predicted, true, strict=True) for pair in zip(*rows, strict=True)]
        self._words += len(words)
        self._correct_words += sum(a == b for a, b in words)
        for kind, counts in count_entities(predicted, true).items():
            self._entities.update({(kind, i): count for i, count in enumerate(counts)})

    def merge(self, other: "TaggingAccumulator") -> None:
        self._words += other._words
        self._correct_words += other._correct_words
        self._entities.update(other._entities)

    def metrics(self, head: TaggingHead) -> dict[str, float]:
        """Compute accuracy over words, and precision, recall and F1 over entities by the rules of conlleval."""
        scores = precision_recall_f1(*self._by_type(head).sum(axis=1))
        accuracy = self._correct_words / max(1, self._words)
        return {"accuracy": accuracy, **{name: float(value) for name, value in scores.items()}}

    def details(self, head: TaggingHead) -> dict[str, Any]:
        """Return `per_class`: precision, recall, F1 and support of each entity type."""
        return {"per_class": scores_by_class(head.types, *self._by_type(head))}

    def _by_type(self, head: TaggingHead) -> np.ndarray:
        """Return the numbers of correct, predicted and true entities of each type, (3, types)."""
        return np.array([[self._entities[kind, i] for kind in head.types] for i in range(3)])


def extract_entities(tags: Sequence[str]) -> list[EntitySpan]:
    """Return the entities of IOB tags, by the rules of conlleval (Tjong Kim Sang and Buchholz, 2000).

    B always starts an entity; so does I after O or after another type.
    """
    found: list[EntitySpan] = []
    start, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        if kind and (mark != "I" or of != kind):
            found.append((start, i, kind))
            kind = ""
        if mark != "O" and not kind:
            start, kind = i, of
    return found


def count_entities(
    predicted: Iterable[Sequence[str]], true: Iterable[Sequence[str]]
) -> dict[str, tuple[int, int, int]]:
    """Count, for each entity type, correct (same words and type), predicted and true entities."""
    counts: dict[str, list[int]] = {}
    for guessed, real in zip(predicted, true, strict=True):
        ours, theirs = set(extract_entities(guessed)), set(extract_entities(real))
        for i, part in enumerate((ours & theirs, ours, theirs)):
            for _, _, kind in part:
                counts.setdefault(kind, [0, 0, 0])[i] += 1
    return {kind: (right, guessed, real) for kind, (right, guessed, real) in counts.items()}
