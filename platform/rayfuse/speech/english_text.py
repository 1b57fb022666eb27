"""English texts as they are spoken: numbers, dates, times, amounts, abbreviations and symbols as words.

The rules are those of common front ends, such as the cleaners of Tacotron: a number of four digits is a year, for
example. What no rule covers is left as it is.
"""

import re
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

_MAX_DIGITS = 15
"""Longer numbers are read digit by digit, as are those that begin with zero."""

_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "\u00a0": " ", "–": "-"})

_ABBREVIATIONS = {
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "dr": "doctor",
    "prof": "professor",
    "st": "saint",
    "mt": "mount",
    "jr": "junior",
    "sr": "senior",
    "vs": "versus",
    "etc": "et cetera",
    "approx": "approximately",
    "dept": "department",
}
_UNITS = {
    "km": "kilometers",
    "cm": "centimeters",
    "mm": "millimeters",
    "kg": "kilograms",
    "mg": "milligrams",
    "ml": "milliliters",
    "kb": "kilobytes",
    "mb": "megabytes",
    "gb": "gigabytes",
    "khz": "kilohertz",
    "mhz": "megahertz",
    "ghz": "gigahertz",
    "ms": "milliseconds",
    "%": "percent",
    "°c": "degrees Celsius",
    "°f": "degrees Fahrenheit",
    "°": "degrees",
}
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_SYMBOLS = {"&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "#": "number", "°": "degrees"}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_lock = threading.Lock()  # inflect's engine has state during a call

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


def spoken_text(text: str) -> str:
    """Return a text with numbers, dates, times, amounts, abbreviations and symbols as words."""
    text = text.translate(_QUOTES).replace("—", ", ").replace("…", "...")
    for pattern, replace in _rules():
        text = pattern.sub(replace, text)
    return text


@cache
def _rules() -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]:
    """Return the rules in the order in which they apply; each sees the words of those before it."""
    abbreviations = "|".join(_ABBREVIATIONS)
    units = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"\be\.g\.", lambda _: "for example"),
        (r"\bi\.e\.", lambda _: "that is"),
        (r"\b(?:[A-Za-z]\.){2,}(?!\w)", lambda match: match[0].replace(".", "").upper()),  # U.S., p.m.
        (rf"\b({abbreviations})\.", lambda match: _ABBREVIATIONS[match[1].lower()]),
        (r"\b([A-Z])\.(?=\s+[A-Z])", lambda match: match[1]),  # initials
        (r"(?<=[A-Za-z0-9])\.(?=[A-Za-z])", lambda _: " dot "),  # example.com
        (
            r"\b((?-i:[A-Z]{2,}))(?-i:'?s)\b",
            lambda match: f"{' '.join(match[1][:-1])} {match[1][-1]}'s",
        ),  # GPUs
        (r"\b(\d{4})-(\d\d)-(\d\d)\b", _date),
        (rf"([$£€])({_NUMBER})(?:\s+(thousand|million|billion|trillion)\b)?", _amount),
        (r"\b([01]?\d|2[0-3]):([0-5]\d)\b", _time),
        (r"\b(\d+)(?:[snr][td]|th)\b", lambda match: _number(match[0])),
        (rf"(?<=\d)\s*({units})(?![A-Za-z])", lambda match: f" {_UNITS[match[1].lower()]}"),
        (r"(?<=\d)-(?=\d)", lambda _: " to "),
        (r"(?<![\w-])-(?=\d)", lambda _: "minus "),
        (r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", lambda _: " "),
        (r"(?<![\d.,])(1[1-9]\d\d|20[1-9]\d)(?![\d]|[.,]\d)", lambda match: _year(int(match[1]))),
        (_NUMBER, lambda match: _number(match[0].replace(",", ""))),
        ("[" + re.escape("".join(_SYMBOLS)) + "]", lambda match: f" {_SYMBOLS[match[0]]} "),
    ]
    return [(re.compile(pattern, re.IGNORECASE), replace) for pattern, replace in rules]


@cache
def _inflect() -> Any:
    from inflect import engine

    return engine()


def _number(digits: str) -> str:
    """Return a number, or an ordinal such as `3rd`, as words."""
    whole = digits.partition(".")[0]
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        return ", ".join(" ".join(_number(digit) for digit in part) for part in digits.split(".") if part)
    with _lock:
        words: str = _inflect().number_to_words(digits, andword="", comma="")
    return words


def _year(year: int) -> str:
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{_number(str(century))} hundred"
    return f"{_number(str(century))} {'oh ' if rest < 10 else ''}{_number(str(rest))}"


def _date(match: re.Match[str]) -> str:
    year, month, day = (int(part) for part in match.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0].replace("-", " ")
    return f"{_MONTHS[month - 1]} {_number(f'{day}th')}, {year}"


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), int(match[2])
    if minute == 0:
        return f"{_number(str(hour))} {'hundred' if hour > 12 else 'o' + chr(39) + 'clock'}"
    return f"{_number(str(hour))} {'oh ' if minute < 10 else ''}{_number(str(minute))}"


def _amount(match: re.Match[str]) -> str:
    unit, part = _CURRENCIES[match[1]]
    whole, _, fraction = match[2].replace(",", "").partition(".")
    if match[3] or len(fraction) not in (0, 2):
        return f"{_number(match[2].replace(',', ''))} {match[3] or ''} {unit}s"
    parts = [_count(int(whole), unit)] if int(whole) or not fraction else []
    if fraction and int(fraction):
        parts.append(_count(int(fraction), part))
    return " and ".join(parts)


def _count(count: int, unit: str) -> str:
    plural = "pence" if unit == "penny" else f"{unit}s"
    return f"{_number(str(count))} {unit if count == 1 else plural}"
