"""English texts as they are spoken."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rayfuse.speech.english_text import spoken_text


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Room 7 has 21 beds", "Room seven has twenty-one beds"),
        ("1,234 of 1234567 rows", "one thousand two hundred thirty-four of one million two hundred thirty-four thousand five hundred sixty-seven rows"),
        ("in 1999, 1900, 2005 and 2026", "in nineteen ninety-nine, nineteen hundred, two thousand five and twenty twenty-six"),
        ("pi is 3.14", "pi is three point one four"),
        ("the 3rd and 21st", "the third and twenty-first"),
        ("at 14:35, 4:05, 4:00 and 16:00", "at fourteen thirty-five, four oh five, four o'clock and sixteen hundred"),
        ("on 2026-11-30.", "on November thirtieth, twenty twenty-six."),
        ("on 2026-13-30", "on twenty twenty-six thirteen thirty"),
        ("$5.50, £1.01, €3 and $2.5 million", "five dollars and fifty cents, one pound and one penny, three euros and two point five million dollars"),
        ("$0.99 and $1", "ninety-nine cents and one dollar"),
        ("3% of 10-20 km", "three percent of ten to twenty kilometers"),
        ("-5 °C", "minus five degrees Celsius"),
        ("Dr. and Mrs. Smith vs. Mr. Jones etc.", "doctor and missus Smith versus mister Jones et cetera"),
        ("e.g. J. R. Smith in the U.S.", "for example J R Smith in the US"),
        ("write to me@example.com", "write to me at example dot com"),
        ("code 007 and 1234567890123456", "code zero zero seven and one two three four five six seven eight nine zero one two three four five six"),
        ("GPT-4 on 2 GPUs", "GPT-four on two G P U's"),
        ("“don’t” — he wrote…", '"don\'t" ,  he wrote...'),
        ("no numbers here", "no numbers here"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_spoken_is_written_as_words(text: str, spoken: str) -> None:
    assert " ".join(spoken_text(text).split()) == " ".join(spoken.split())


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"{number} of 1,234,567 and the {number}th" for number in range(200, 240)]
    expected = [spoken_text(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(spoken_text, texts * 20)) == expected * 20


def test_a_text_without_digits_afterwards() -> None:
    text = "7 of 9 at 12:30 on 2001-02-03 for $4.05 (5%), 1st of 1,000.5 to 00 and 99999999999999999999"
    assert not any(character.isdigit() for character in spoken_text(text))
