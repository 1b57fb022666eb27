"""Texts in parts that a voice speaks."""

import random

from rayfuse.speech.sentences import split_sentences


def test_sentences_end_at_their_marks_and_at_line_breaks() -> None:
    assert split_sentences('One. Two! "Three?" Four…\nFive\n\n- six. 1.5 is one') == [
        "One.", "Two!", '"Three?"', "Four…", "Five", "- six.", "1.5 is one",
    ]  # fmt: skip
    assert split_sentences("今日は。元気？はい") == ["今日は。", "元気？", "はい"]
    assert split_sentences(" \n ") == []


def test_long_sentences_are_split_at_pauses_then_at_spaces() -> None:
    text = "a bit of text, " * 4 + "and words " * 4
    parts = split_sentences(text, 40)
    assert parts[0] == "a bit of text, a bit of text,"
    assert all(len(part) <= 40 for part in parts)
    assert " ".join(parts) == text.strip()
    assert split_sentences("x" * 100, 40) == ["x" * 40, "x" * 40, "x" * 20]


def test_nothing_is_lost() -> None:
    choose = random.Random(0)
    for _ in range(300):
        text = "".join(choose.choice("ab ,.!?\n;'") for _ in range(choose.randrange(200)))
        parts = split_sentences(text, 30)
        assert "".join("".join(parts).split()) == "".join(text.split())
        assert all(part and len(part) <= 30 for part in parts)
