"""Levels of quality of a preset."""

from typing import Literal, get_args

Quality = Literal["fast", "medium", "best"]
"""Amount of training: for about two minutes, twenty minutes or two hours on a few CPU cores."""

QUALITIES: tuple[str, ...] = get_args(Quality)
"""All levels of quality."""
