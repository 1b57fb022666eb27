"""Summaries of the values of rows, accumulated while a split is read once."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

ItemT = TypeVar("ItemT", bound=Hashable)


class Summary(ABC):
    """Accumulator of rows or values, for lines of the log about all of them."""

    def takes_next_row(self) -> bool:
        """Return whether the values of the next row are added; those of others are not read. Called once for each row."""
        return True

    @abstractmethod
    def update(self, value: Any) -> None:
        """Add a row or value."""

    @abstractmethod
    def lines(self) -> Iterable[str]:
        """Return the lines that describe what was added."""


class CountSummary(Summary):
    """Count of the items in each value.

    items: returns the items of a value. describe: returns the lines for the counts of all items.
    """

    def __init__(
        self,
        items: Callable[[Any], Iterable[ItemT]],
        describe: Callable[[Counter[ItemT]], Iterable[str]],
    ) -> None:
        self._items, self._describe = items, describe
        self._counts: Counter[Any] = Counter()

    def update(self, value: Any) -> None:
        self._counts.update(self._items(value))

    def lines(self) -> Iterable[str]:
        return self._describe(self._counts)
