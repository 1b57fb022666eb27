"""Generated replies next to their references, and the metrics of texts."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from rayfuse.model.tasks.cider import cider_d
from rayfuse.model.tasks.json_replies import INVALID, read_object, slot_f1, valid_json
from rayfuse.spec.tasks.generation import TextMetric

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_MAX_SHOWN = 50
"""Replies in the details of an evaluation."""

Group = tuple[float, ...]
"""Rows of equal groups are references of each other."""


class Reply(NamedTuple):
    """A generated text and its reference."""

    text: str
    reference: str
    group: Group | None


@dataclass
class Replies:
    """Replies of some rows, accumulated over batches and workers."""

    rows: list[Reply] = field(default_factory=list)

    def merge(self, other: "Replies") -> None:
        """Add the rows of another worker."""
        self.rows += other.rows

    def details(self) -> dict[str, Any]:
        """Return the first replies next to their references, and their number, as JSON values."""
        shown = [
            {"text": row.text, "references": own}
            for row, own in zip(self.rows[:_MAX_SHOWN], self.references(), strict=False)
        ]
        return {"replies": shown, "decoded": len(self.rows)}

    def references(self) -> list[list[str]]:
        """Return all references of each row: its own first, then the other ones of its group."""
        by_group: dict[Group, list[str]] = {}
        for row in self.rows:
            if row.group is not None:
                by_group.setdefault(row.group, []).append(row.reference)
        return [
            list(dict.fromkeys([row.reference, *(by_group[row.group] if row.group is not None else ())]))
            for row in self.rows
        ]


def text_metrics(
    names: Iterable[TextMetric], replies: Replies, normalize: Literal["whisper"] | None = None
) -> dict[str, float]:
    """Compute metrics of replies: fractions, but `bleu` and `chrf` from 0 to 100 and `cider` from 0 to 10.

    normalize: normalization of texts before `wer` and `cer`.
    """
    texts, references = [row.text for row in replies.rows], replies.references()
    groups = [row.group for row in replies.rows]
    found: dict[str, float] = {}
    for name in names:
        if name == "cider":
            found[name] = cider_d(texts, references, groups)
        elif name == "valid_json":
            found[name] = valid_json(texts)
        elif name in _ERROR_RATES:
            found[name] = _error_rate(name, texts, [own[0] for own in references], normalize)
        else:
            found[name] = _METRICS[name](texts, references)
    return found


def _exact(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return _mean_of_best(lambda text, one: float(is_exact(text, one)), texts, references)


def is_exact(text: str, reference: str) -> bool:
    """Return whether two texts are equal: the values of JSON objects and lists, other texts after `normalize_answer`."""
    wanted = read_object(reference)
    if wanted is not INVALID:
        return bool(read_object(text) == wanted)
    return normalize_answer(text) == normalize_answer(reference)


def _token_f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return _mean_of_best(token_f1, texts, references)


def _bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    return float(BLEU().corpus_score(list(texts), _reference_streams(references)).score)


def _chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(list(texts), _reference_streams(references)).score)


def _rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return _mean_of_best(lambda text, one: scorer.score(one, text)["rougeL"].fmeasure, texts, references)


def _error_rate(
    name: str, texts: Sequence[str], references: Sequence[str], normalize: Literal["whisper"] | None
) -> float:
    """Compute an error rate of jiwer: edits by words or characters of the references, which may be above 1.

    References without words after normalization are left out, as there is no rate of them; 0 if none is left.
    """
    import jiwer

    change = _whisper_normalizer() if normalize == "whisper" else str
    pairs = [(change(text), change(one)) for text, one in zip(texts, references, strict=True)]
    pairs = [pair for pair in pairs if pair[1].strip()]
    if not pairs:
        return 0.0
    return float(getattr(jiwer, name)([one for _, one in pairs], [text for text, _ in pairs]))


@cache
def _whisper_normalizer() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    found: Callable[[str], str] = EnglishTextNormalizer()
    return found


_ERROR_RATES = ("wer", "cer")
"""Metrics that are functions of jiwer."""
_METRICS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "exact": _exact,
    "token_f1": _token_f1,
    "bleu": _bleu,
    "chrf": _chrf,
    "rouge_l": _rouge_l,
    "slot_f1": slot_f1,
}


def normalize_answer(text: str) -> str:
    """Return a text in lower case without punctuation, articles and extra white space (SQuAD; Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(text: str, reference: str) -> float:
    """Compute the F1 of the words that two texts share, after `normalize_answer`; 1 if both have none."""
    found, wanted = normalize_answer(text).split(), normalize_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def _mean_of_best(
    score: Callable[[str, str], float], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Return the mean over the texts of the score with the best reference; 0 without texts."""
    best = [max(score(text, one) for one in own) for text, own in zip(texts, references, strict=True)]
    return sum(best) / max(1, len(best))


def _reference_streams(references: Sequence[Sequence[str]]) -> Any:
    """Return the references as sacrebleu takes them: a list for each place of a reference, None where a row has fewer."""
    most = max(map(len, references), default=1)
    return [[own[place] if place < len(own) else None for own in references] for place in range(most)]
