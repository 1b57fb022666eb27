"""Questions of the demo: four operations on a written and a spoken digit, in plain English.

Training and test rows share no phrasing, so that a correct prediction on test rows needs the words of a question, not the
memorized sentence. The test phrasings recombine words of the training phrasings.
"""

from collections.abc import Callable
from typing import Literal

Operation = Literal["sum", "diff", "max", "min"]
Split = Literal["train", "test"]

_ANSWERS: dict[Operation, Callable[[int, int], int]] = {
    "sum": lambda written, spoken: written + spoken,
    "diff": lambda written, spoken: abs(written - spoken),
    "max": max,
    "min": min,
}

_TRAIN: dict[Operation, tuple[str, ...]] = {
    "sum": (
        "add the digit you see to the digit you hear",
        "what is the sum of the written and the spoken digit?",
        "how much do the two digits make together?",
        "what is the total of the two digits?",
        "what do you get when you add both digits?",
        "the written digit plus the spoken digit",
        "add the two numbers up",
        "what do the digits come to altogether?",
        "give the sum of what you see and what you hear",
        "total the digit in the picture and the digit in the recording",
        "find the sum of the pair",
        "how much are both numbers when added together?",
    ),
    "diff": (
        "by how much do the written and the spoken digit differ?",
        "subtract the smaller digit from the larger one",
        "what is the difference between the two digits?",
        "how far apart are the two digits?",
        "what is the gap between the two numbers?",
        "take the lesser digit away from the greater one",
        "how much bigger is the larger digit than the smaller one?",
        "find the distance between the two digits",
        "subtract the lower number from the higher",
        "give the difference of what you see and what you hear",
        "how many steps is it from one digit to the other?",
        "the larger digit minus the smaller digit",
    ),
    "max": (
        "give the bigger digit",
        "what is the maximum of the two?",
        "which of the two digits is larger?",
        "which digit is the greatest?",
        "name the higher of the two digits",
        "pick the larger of the written and the spoken digit",
        "what is the biggest of what you see and hear?",
        "return the greater number",
        "which number is worth more?",
        "the highest of the pair",
        "tell me the largest of the two numbers",
        "choose whichever digit is bigger",
    ),
    "min": (
        "give the lesser digit",
        "what is the minimum of the two?",
        "which of the two digits is smaller?",
        "which digit is the least?",
        "name the lower of the two digits",
        "pick the smaller of the written and the spoken digit",
        "what is the smallest of what you see and hear?",
        "return the lesser number",
        "which number is worth less?",
        "the lowest of the pair",
        "tell me the smallest of the two numbers",
        "choose whichever digit is lower",
    ),
}

_TEST: dict[Operation, tuple[str, ...]] = {
    "sum": (
        "what is the digit in the picture plus the spoken one?",
        "give the total of both numbers",
        "add up what is written and what is spoken",
        "what is the sum of the pair?",
        "how much are the two digits combined?",
    ),
    "diff": (
        "by what amount do the two numbers differ?",
        "what is the gap between what you see and what you hear?",
        "subtract the lesser number from the greater one",
        "how far is one digit from the other?",
        "find the difference of the pair",
    ),
    "max": (
        "what is the greater of the two digits?",
        "tell me the bigger number of the pair",
        "which one is the highest?",
        "give the maximum of what you see and what you hear",
        "pick the largest digit",
    ),
    "min": (
        "what is the lesser of the two digits?",
        "tell me the smaller number of the pair",
        "which one is the lowest?",
        "give the minimum of what you see and what you hear",
        "pick the smallest digit",
    ),
}

OPERATIONS: tuple[Operation, ...] = tuple(_ANSWERS)
"""All operations."""


def answer(operation: Operation, image_digit: int, audio_digit: int) -> int:
    """Compute the label, 0 to 18; `diff` is the absolute difference."""
    return _ANSWERS[operation](image_digit, audio_digit)


def phrasings(split: Split) -> tuple[tuple[Operation, str], ...]:
    """Return every (operation, question) of a split: 12 questions per operation for training, 5 for testing."""
    by_operation = _TRAIN if split == "train" else _TEST
    return tuple((operation, text) for operation, texts in by_operation.items() for text in texts)
