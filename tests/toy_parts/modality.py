"""A DNA sequence, one-hot encoded over the bases of the training rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities import Features, InputFitter, Modality, SaliencyMap, Schema, pad
from rayfuse.spec.base import SpecModel


class DNAOptions(SpecModel):
    """Options of a DNA input."""

    max_bases: int = Field(32, ge=1)
    """Bases after which a sequence is cut."""
    alphabet: str | None = None
    """Known bases; by default those of the training rows."""


class AlphabetFitter(InputFitter):
    """Set of the bases of the training rows."""

    def __init__(self, options: DNAOptions) -> None:
        self.options = options
        self.bases: set[str] = set()

    def partial_fit(self, value: Any) -> None:
        if isinstance(value, str):
            self.bases |= set(value)

    def finalize(self) -> DNAOptions:
        if not self.bases:
            raise DataError("no sequence in the training rows")
        return self.options.model_copy(update={"alphabet": "".join(sorted(self.bases))})


class DNA(Modality):
    """A DNA sequence, such as GATTACA. Features: `one_hot`, float32 (bases, alphabet), and `base_mask`."""

    Options = DNAOptions
    options: DNAOptions

    value_formats = ("text",)
    length_field = "max_bases"
    length_mask = "base_mask"

    @classmethod
    def fitter(cls, options: DNAOptions) -> InputFitter | None:
        return AlphabetFitter(options) if options.alphabet is None else None

    def decode(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise InvalidInputError(f"{value!r} is not a sequence; write its bases, as in GATTACA")
        if unknown := set(value) - set(self.options.alphabet or value):
            raise InvalidInputError(f"{min(unknown)!r} is not a base; use {self.options.alphabet}")
        return value[: self.options.max_bases]

    def process(self, decoded: str) -> Features:
        alphabet = list(self.options.alphabet or "")
        one_hot = np.array([[base == known for known in alphabet] for base in decoded], dtype=np.float32)
        return {"one_hot": one_hot, "base_mask": np.ones(len(decoded), dtype=np.int64)}

    def dummy_features(self) -> Features:
        return self.process("A")

    def num_steps(self, decoded: str) -> int:
        return len(decoded)

    def collate(self, rows: list[Features]) -> Features:
        return {name: pad([row[name] for row in rows], axis=0) for name in rows[0]}

    def json_schema(self) -> Schema:
        return {"type": "string", "pattern": f"^[{self.options.alphabet}]+$"}

    def example(self) -> str:
        return "GATTACA"

    def description(self) -> str:
        return f"a DNA sequence, of which the first {self.options.max_bases} bases are read"

    def curl_field(self, name: str) -> str:
        return f"-F {name}={self.example()}"

    def with_assumed_statistics(self) -> tuple[DNAOptions, list[str]]:
        return self.options.model_copy(update={"alphabet": "ACGT"}), ["the bases ACGT"]

    def longest_features(self, as_words: bool = False) -> Features:
        return self.process("A" * self.options.max_bases)

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        return SaliencyMap("one_hot", sum_axes=(-1,), axis_label="position")
