"""Rules of the time stamps in a transcript."""

import torch

from rayfuse.decoding.time_stamps import TimeStampRules

END, FIRST, VOCAB = 10, 15, 120
"""Texts are the tokens below 10; from 15 on, each token is 20 ms later."""


def allowed(ids: list[int], favoured: int | None = None) -> set[int]:
    """Return the tokens that may follow others, of which one is far more probable than the rest."""
    rules, logits = TimeStampRules(FIRST, END), torch.zeros(VOCAB)
    logits[:END] = 9.0  # together, the many time stamps would be more probable than a text
    if favoured is not None:
        logits[favoured] = 30.0
    for token in ids:
        rules.advance(token, 50)
    return set(rules.allowed(logits).nonzero().flatten().tolist())


def test_a_transcript_begins_with_a_time_in_its_first_second() -> None:
    assert allowed([]) == set(range(FIRST, FIRST + 51))


def test_a_text_follows_the_time_at_which_it_begins() -> None:
    assert allowed([20]) == {*range(END), END}
    assert allowed([20, 3, 30, 30]) == {*range(END), END}


def test_a_text_ends_at_a_later_time() -> None:
    assert allowed([20, 3]) == {*range(END), END, *range(21, VOCAB)}


def test_the_next_segment_begins_where_the_last_one_ends_or_later() -> None:
    assert allowed([20, 3, 30]) == set(range(30, VOCAB))
    assert allowed([20, 3, 30], favoured=END) == {END, *range(30, VOCAB)}


def test_a_probable_time_ends_a_text() -> None:
    assert allowed([20, 3], favoured=40) == set(range(21, VOCAB))
