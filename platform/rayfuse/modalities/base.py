"""What every kind of input offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from rayfuse.errors import DataError

Features = dict[str, np.ndarray]
"""What an encoder reads of one input of one sample, by the name of the encoder's argument."""


class Modality(ABC):
    """Turns one value of a row or request into what its encoder reads.

    `decode` opens the value and raises BadInput where it is broken: it is the check of a row. `process`
    prepares the decoded value for the encoder. Neither keeps state, so one instance serves many threads.
    """

    from_file: ClassVar[bool] = True
    """Values are bytes of a file; else they are the text or numbers themselves."""
    media_types: ClassVar[tuple[str, ...]] = ()
    """HTTP media types that a request may send, as `type/` prefixes or whole names."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @classmethod
    def fitted(cls, options: Any, values: Iterable[Any]) -> Any:
        """The input's options with what it learns from the training rows' raw values: scales, vocabularies.

        Raises DataError where the values teach nothing.
        """
        return options

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """Open a raw value. Raises BadInput that says what is wrong with it."""

    @abstractmethod
    def process(self, decoded: Any) -> Features:
        """Prepare a decoded value for the encoder."""

    @abstractmethod
    def blank(self) -> Features:
        """The smallest valid features: what a worker encodes when none of its rows has this input."""

    def collate(self, rows: list[Features]) -> Features:
        """Stack the features of several samples along a new first axis."""
        return {name: _stack(name, [row[name] for row in rows]) for name in rows[0]}


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: samples of different shapes ({', '.join(map(str, sorted(shapes)))}) make no batch; "
            "the processor of the pretrained encoder must bring them to one size"
        )
    return np.stack(arrays)
