"""Modalities: decoding, validation and processing of each type of input, the same in training and serving."""

from typing import Any

from pydantic import BaseModel

from rayfuse.modalities.base import Features, InputFitter, Modality, SaliencyMap, Schema, ValueFormat, pad
from rayfuse.spec.family import CustomConfig, part_options
from rayfuse.spec.inputs import INPUTS, Input


def modality_class(options: Input) -> type[Modality]:
    """Return the class that decodes and processes an input. Raises SpecError if a custom one cannot be loaded."""
    found: type[Modality] = INPUTS.resolve(options)
    return found


def build_modality(options: Input) -> Modality:
    """Build the decoder and processor of an input. Raises SpecError if a custom class cannot be loaded."""
    modality: Modality = INPUTS.build(options)
    return modality


def build_input_fitter(options: Input) -> InputFitter | None:
    """Build the accumulator of what an input learns from the training rows; None if it learns nothing.

    Its `finalize` returns the fitted options of the input.
    """
    fitter = modality_class(options).fitter(part_options(options))
    if fitter is None or not isinstance(options, CustomConfig):
        return fitter
    return _CustomInputFitter(options, fitter)


class _CustomInputFitter(InputFitter):
    """Accumulator of a custom modality, which fits its own `Options`."""

    def __init__(self, config: CustomConfig, fitter: InputFitter) -> None:
        self._config, self._fitter = config, fitter

    def takes_next_row(self) -> bool:
        return self._fitter.takes_next_row()

    def partial_fit(self, value: Any) -> None:
        self._fitter.partial_fit(value)

    def finalize(self) -> Any:
        fitted = self._fitter.finalize()
        options = fitted.model_dump(mode="json") if isinstance(fitted, BaseModel) else fitted
        return self._config.model_copy(update={"options": options})


__all__ = [
    "Features",
    "InputFitter",
    "Modality",
    "SaliencyMap",
    "Schema",
    "ValueFormat",
    "build_input_fitter",
    "build_modality",
    "modality_class",
    "pad",
]
