"""Split texts into the parts that a voice speaks one after the other."""

import re

MAX_CHARACTERS = 300
"""Longer sentences are split: the memory of a voice grows with the square of their length."""

_END = re.compile(r"([.!?…][\"')\]»”’]*)\s+|([。！？])")
_PAUSE = re.compile(r"(?<=[,;:、，；：—])\s*")


def split_sentences(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Return the sentences of a text; those above `max_characters` are split at pauses, else at spaces."""
    lines = _END.sub(lambda match: f"{match[0]}\n", text).splitlines()
    sentences = (sentence.strip() for sentence in lines)
    return [part for sentence in sentences if sentence for part in _split_long(sentence, max_characters)]


def _split_long(sentence: str, limit: int) -> list[str]:
    parts: list[str] = []
    while len(sentence) > limit:
        pauses = [match.end() for match in _PAUSE.finditer(sentence, limit // 3, limit)]
        space = sentence.rfind(" ", 1, limit)
        end = pauses[-1] if pauses else space if space > 0 else limit
        parts.append(sentence[:end].strip())
        sentence = sentence[end:].strip()
    return [part for part in [*parts, sentence] if part]
