"""Metrics of generated texts."""

import math

import pytest

from rayfuse.model.tasks.cider import cider_d
from rayfuse.model.tasks.replies import Replies, Reply, normalize_answer, text_metrics, token_f1
from rayfuse.spec.tasks.generation import TEXT_METRICS


def replies(*pairs: tuple[str, str], groups: list[int] | None = None) -> Replies:
    found = [(float(group),) for group in groups] if groups else [None] * len(pairs)
    return Replies(
        [Reply(text, reference, group) for (text, reference), group in zip(pairs, found, strict=True)]
    )


def test_equal_texts_have_the_best_value_of_every_metric() -> None:
    texts = ["a small dog runs over green grass", "two men talk in front of a red car"]
    names = [name for name in TEXT_METRICS if name not in ("slot_f1", "valid_json")]
    found = text_metrics(names, replies(*[(text, text) for text in texts]))
    best = {
        "exact": 1,
        "token_f1": 1,
        "bleu": 100,
        "chrf": 100,
        "rouge_l": 1,
        "cider": 10,
        "wer": 0,
        "cer": 0,
    }
    assert found == pytest.approx(best)


def test_answers_are_normalized_as_for_squad() -> None:
    assert normalize_answer("The  cat, sat!") == "cat sat"
    assert token_f1("the cat sat", "A cat.") == pytest.approx(2 / 3)
    assert token_f1("the", "a") == 1
    assert token_f1("cat", "") == 0


def test_rows_of_a_group_are_references_of_each_other() -> None:
    rows = replies(("dog", "cat"), ("cat", "dog"), ("dog", "horse"), groups=[1, 1, 2])
    assert rows.references() == [["cat", "dog"], ["dog", "cat"], ["horse"]]
    assert text_metrics(["exact", "wer"], rows) == pytest.approx({"exact": 2 / 3, "wer": 1})


def test_bleu_takes_different_numbers_of_references() -> None:
    rows = replies(
        ("the cat sat on the mat", "the cat sat on the mat"),
        ("the cat sat on the mat", "a cat"),
        ("a dog runs far away", "a dog runs far away"),
        groups=[1, 1, 2],
    )
    assert text_metrics(["bleu"], rows)["bleu"] == pytest.approx(100)


def test_error_rates_count_words_and_characters() -> None:
    found = text_metrics(["wer", "cer"], replies(("one two four", "one two three")))
    assert found["wer"] == pytest.approx(1 / 3)
    assert found["cer"] == pytest.approx(5 / 13)


def test_cider_by_hand() -> None:
    """Two documents; words in one of them weigh log 2, words in both nothing."""
    references = [["red cat"], ["red dog"]]
    assert cider_d(["red cat", "red dog"], references) == pytest.approx(10 * 2 / 4)
    # The word `old` is in no document; a word too many costs exp(-1 / 72).
    cosine = 1 / math.hypot(1, 1)
    assert cider_d(["red old cat", "x"], references) == pytest.approx(10 * math.exp(-1 / 72) * cosine / 4 / 2)


def test_cider_clips_repeated_words_and_knows_groups() -> None:
    references = [["red cat", "small cat"], ["red cat", "small cat"], ["big dog", "old dog"]]
    repeated = cider_d(["cat cat cat cat cat cat", "cat", "dog"], references, [1, 1, 2])
    assert repeated < cider_d(["cat", "cat", "dog"], references, [1, 1, 2])
    references = [["red cat"], ["red cat"], ["blue cat"], ["old dog"]]
    texts = ["red dog"] * 4
    unique = cider_d(texts[1:], references[1:])
    assert cider_d(texts, references, [1, 1, 2, 3]) == pytest.approx(
        (unique * 3 + cider_of_first(references)) / 4
    )


def cider_of_first(references: list[list[str]]) -> float:
    """Return the score of `red dog` against `red cat`, where red and dog are in one document of three, and cat in two."""
    rare, common = math.log(3), math.log(1.5)
    return 10 / 4 * rare * rare / (math.hypot(rare, rare) * math.hypot(rare, common))


def test_no_more_than_fifty_replies_are_shown() -> None:
    found = replies(*[("a", "b")] * 60).details()
    assert found["decoded"] == 60
    assert found["replies"] == [{"text": "a", "references": ["b"]}] * 50


def test_error_rates_normalize_as_for_whisper() -> None:
    rows = replies(("Mr. Smith's colour, 20!", "mister smith's color twenty"), ("anything", "(laughs)"))
    plain = text_metrics(["wer"], rows)["wer"]
    assert plain > 0.5
    assert text_metrics(["wer", "cer"], rows, "whisper") == {"wer": 0, "cer": 0}


def test_error_rates_without_reference_words() -> None:
    assert text_metrics(["wer"], replies(("anything", "[noise]")), "whisper") == {"wer": 0}


COMMAND = '{"intent": "light", "slots": {"room": ["hall", "bath"], "level": 3.5}}'


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ('{"slots": {"level": 3.50, "room": ["hall", "bath"]}, "intent": "light"}', 1),
        ('{"intent": "light", "slots": {"room": ["hall", "bath"], "level": 35}}', 0),
        ('{"intent": "light", "slots": {"room": ["bath", "hall"], "level": 3.5}}', 0),
        (COMMAND[:-1], 0),
    ],
)
def test_json_matches_exactly_by_value(text: str, exact: float) -> None:
    assert text_metrics(["exact"], replies((text, COMMAND)))["exact"] == exact


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        (COMMAND, 1),
        ('{"intent": "light", "slots": {"room": ["bath", "hall"], "level": 3.5}}', 1),
        ('{"intent": "light", "slots": {"room": ["hall", "hall"]}}', 4 / 7),
        ('{"intent": "heat"}', 0),
        ("no JSON", 0),
        ("{}", 0),
    ],
)
def test_slots_are_paths_with_values(text: str, f1: float) -> None:
    assert text_metrics(["slot_f1"], replies((text, COMMAND)))["slot_f1"] == pytest.approx(f1)


def test_slots_of_all_rows_count_alike() -> None:
    rows = replies(('{"a": 1}', '{"a": 1.0}'), ("nothing", '{"a": 1, "b": 2, "c": 3}'))
    assert text_metrics(["slot_f1"], rows)["slot_f1"] == pytest.approx(2 * 1 / (1 + 4))


def test_the_reference_that_shares_the_most_slots_counts() -> None:
    rows = replies(('{"a": 2}', '{"a": 1}'), ('{"a": 2}', '{"a": 2}'), groups=[1, 1])
    assert text_metrics(["slot_f1"], rows)["slot_f1"] == 1


def test_json_is_strict() -> None:
    texts = ['{"a": 1}', "[1]", "NaN", '{"a": 1', "word", "[" * 100_000]
    rows = replies(*[(text, "{}") for text in texts])
    assert text_metrics(["valid_json"], rows)["valid_json"] == pytest.approx(2 / 6)
