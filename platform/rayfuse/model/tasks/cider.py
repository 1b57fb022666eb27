"""CIDEr-D, the agreement of captions with several references (Vedantam et al., 2015)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

_MAX_N = 4
_SIGMA = 6.0
_SCALE = 10.0
_WORD = re.compile(r"\w+(?:['’]\w+)?")

_NGram = tuple[str, ...]
_Vector = dict[_NGram, float]
_Weigh = Callable[[Counter[_NGram]], _Vector]


def cider_d(
    texts: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[Hashable | None] | None = None
) -> float:
    """Compute the mean CIDEr-D of texts, from 0 to 10.

    references: those of each text. groups: texts of equal groups have the same references, which count as one document
    for the inverse document frequencies; None for a text without a group. With a single document, all weights are 0, and so
    is the score. Words are in lower case and without punctuation.
    """
    documents: dict[Hashable, Sequence[str]] = {}
    for row, own in enumerate(references):
        group = groups[row] if groups is not None else None
        documents.setdefault(("row", row) if group is None else group, own)
    frequencies: Counter[_NGram] = Counter()
    for own in documents.values():
        frequencies.update({ngram for reference in own for counts in _ngrams(reference) for ngram in counts})
    log_documents = math.log(max(1, len(documents)))

    def weigh(counts: Counter[_NGram]) -> _Vector:
        return {
            ngram: count * (log_documents - math.log(max(1, frequencies[ngram])))
            for ngram, count in counts.items()
        }

    def score(text: str, own: Sequence[str]) -> float:
        found = _ngrams(text)
        return sum(_similarity(found, _ngrams(one), weigh) for one in own) / len(own)

    scores = [score(text, own) for text, own in zip(texts, references, strict=True)]
    return sum(scores) / max(1, len(scores))


def _similarity(found: list[Counter[_NGram]], wanted: list[Counter[_NGram]], weigh: _Weigh) -> float:
    """Return the mean clipped cosine over the lengths of n-grams, with the penalty of different lengths, times 10."""
    difference = found[0].total() - wanted[0].total()
    penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
    total = 0.0
    for mine, theirs in zip(found, wanted, strict=True):
        first, second = weigh(mine), weigh(theirs)
        norms = _norm(first) * _norm(second)
        if norms:
            shared = first.keys() & second.keys()
            total += sum(min(first[ngram], second[ngram]) * second[ngram] for ngram in shared) / norms
    return _SCALE * penalty * total / _MAX_N


def _norm(vector: _Vector) -> float:
    return math.sqrt(sum(value * value for value in vector.values()))


def _ngrams(text: str) -> list[Counter[_NGram]]:
    """Return the counts of a text's n-grams of 1 to 4 words."""
    words = _WORD.findall(text.lower())
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
        for n in range(1, _MAX_N + 1)
    ]
