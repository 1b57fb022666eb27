"""Words that have an order, the lowest first."""

from collections.abc import Collection, Sequence

from rayfuse.schema_inference.column import normalized_name

SCALES: tuple[tuple[str, ...], ...] = (
    ("very low", "low", "medium", "high", "very high"),
    ("very low", "low", "moderate", "high", "very high"),
    ("low", "normal", "high"),
    ("low", "medium", "high", "critical"),
    ("none", "low", "medium", "high"),
    ("xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl"),
    ("tiny", "small", "medium", "large", "huge"),
    ("very bad", "bad", "neutral", "good", "very good"),
    ("very poor", "poor", "fair", "average", "good", "very good", "excellent"),
    ("bad", "poor", "ok", "good", "great", "excellent"),
    ("very negative", "negative", "neutral", "positive", "very positive"),
    ("none", "mild", "moderate", "severe", "critical"),
    ("minor", "moderate", "major", "critical"),
    ("minor", "major", "critical"),
    ("very easy", "easy", "medium", "hard", "very hard"),
    ("never", "rarely", "sometimes", "often", "always"),
    ("strongly disagree", "disagree", "neutral", "agree", "strongly agree"),
    ("very dissatisfied", "dissatisfied", "neutral", "satisfied", "very satisfied"),
    ("beginner", "intermediate", "advanced", "expert"),
    ("cold", "cool", "warm", "hot"),
    ("slow", "medium", "fast"),
    ("f", "e", "d", "c", "b", "a"),
)
_FEWEST = 3


def order_words(words: Collection[str]) -> list[str] | None:
    """Return words in the order of a known scale; None if they are fewer than three, or of none."""
    by_name = {normalized_name(word).replace("_", " "): word for word in words}
    if len(words) < _FEWEST or len(by_name) < len(words):
        return None
    scale = next((scale for scale in SCALES if by_name.keys() <= set(scale)), None)
    return None if scale is None else sorted_by(scale, by_name)


def sorted_by(scale: Sequence[str], by_name: dict[str, str]) -> list[str]:
    """Return the words of a scale that occur, as they are written in the data."""
    return [by_name[name] for name in scale if name in by_name]
