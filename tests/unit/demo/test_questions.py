import re
import subprocess
import sys
from collections import Counter

import pytest

from rayfuse.demo.questions import OPERATIONS, Operation, Split, answer, phrasings


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize(
    ("operation", "image_digit", "audio_digit", "label"),
    [
        ("sum", 9, 9, 18),
        ("sum", 0, 0, 0),
        ("diff", 3, 8, 5),
        ("diff", 8, 3, 5),
        ("max", 2, 7, 7),
        ("min", 2, 7, 2),
        ("min", 4, 4, 4),
    ],
)
def test_labels(operation: Operation, image_digit: int, audio_digit: int, label: int) -> None:
    assert answer(operation, image_digit, audio_digit) == label


def test_labels_do_not_depend_on_which_digit_is_spoken() -> None:
    for operation in OPERATIONS:
        for first in range(10):
            for second in range(10):
                label = answer(operation, first, second)
                assert label == answer(operation, second, first)
                assert 0 <= label <= 18


@pytest.mark.parametrize(("split", "each"), [("train", 12), ("test", 5)])
def test_every_operation_is_equally_frequent(split: Split, each: int) -> None:
    assert Counter(operation for operation, _ in phrasings(split)) == dict.fromkeys(OPERATIONS, each)


def test_no_phrasing_is_used_twice_or_in_both_splits() -> None:
    texts = [" ".join(sorted(_words(text))) for split in ("train", "test") for _, text in phrasings(split)]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_phrasings_of_the_test_split_use_words_of_training() -> None:
    known: dict[str, set[str]] = {}
    for operation, text in phrasings("train"):
        known.setdefault(operation, set()).update(_words(text))
    everything = set().union(*known.values())
    for operation, text in phrasings("test"):
        assert len(_words(text) - everything) <= 1, text
        assert len(_words(text) & known[operation]) >= 0.6 * len(_words(text)), text


def test_importing_needs_only_the_standard_library() -> None:
    code = "import sys; import rayfuse.demo.questions; print(*{'numpy', 'scipy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
