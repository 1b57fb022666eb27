"""What every kind of input offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np

from rayfuse.errors import DataError

Features = dict[str, np.ndarray]
"""What an encoder reads of one input of one sample, by the name of the encoder's argument."""

Form = Literal["file", "text", "json"]
"""How a value is given: the bytes of a file, a text, or numbers, lists and mappings as JSON has them."""

FARTHEST = 100.0
"""Scaled numbers are clipped there: one wild reading must not drown all else."""


class Modality(ABC):
    """Turns one value of a row or request into what its encoder reads.

    `decode` opens the value and raises BadInput where it is broken: it is the check of a row. `process`
    prepares the decoded value for the encoder. Neither keeps state, so one instance serves many threads.
    """

    forms: ClassVar[tuple[Form, ...]] = ("file",)
    """The forms that a value may have."""
    media_types: ClassVar[tuple[str, ...]] = ()
    """HTTP media types that a request may send, as `type/` prefixes or whole names."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @classmethod
    def fitted(cls, options: Any, values: Iterable[Any]) -> Any:
        """The input's options with what it learns from the training rows' raw values: scales, vocabularies.

        `values` can be iterated several times, and may be more than fit into memory. Raises DataError where the values teach nothing.
        """
        return options

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """Open a raw value. Raises BadInput that says what is wrong with it.

        MissingInput where nothing is wrong with it but it holds nothing of this input: a video without sound.
        """

    @abstractmethod
    def process(self, decoded: Any) -> Features:
        """Prepare a decoded value for the encoder."""

    @abstractmethod
    def blank(self) -> Features:
        """The smallest valid features: what a worker encodes when none of its rows has this input."""

    def steps(self, decoded: Any) -> int:
        """Steps of a decoded value along which a batch is padded to its longest; 0 where all are of one size."""
        return 0

    def findings(self, values: Iterable[Any]) -> Iterable[str]:
        """Lines that tell people of the raw values of some rows."""
        return ()

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


def pad(arrays: list[np.ndarray], axis: int, fill: float = 0) -> np.ndarray:
    """Stack arrays that differ in length along `axis`, the shorter ones filled up at their end."""
    longest = max(array.shape[axis] for array in arrays)
    shape = list(arrays[0].shape)
    shape[axis] = longest
    stacked = np.full((len(arrays), *shape), fill, dtype=arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return stacked
