"""Random changes of training rows, by kind of input: what a model must not care about."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise PydanticCustomError("range", "not a range; write [LOWEST, HIGHEST]")
    return value


_Number = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Factor = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[_Number, _Number], AfterValidator(_in_order)]
"""Lowest and highest of a number that is drawn anew for each row, evenly."""
ShareRange = Annotated[tuple[_Share, _Share], AfterValidator(_in_order)]
FactorRange = Annotated[tuple[_Factor, _Factor], AfterValidator(_in_order)]


class _Augment(Block):
    probability: float = Field(1.0, gt=0, le=1)
    """Share of the rows that are changed."""


class AffineImage(_Augment):
    """Turn, move, scale and shear a picture; what comes in from outside has the colour of its corners."""

    type: Literal["affine"]
    rotate: float = Field(15.0, ge=0, le=180)
    """Largest angle, in degrees to either side."""
    shift: float = Field(0.1, ge=0, le=1)
    """Largest move, as a share of the picture's side."""
    scale: FactorRange = (0.9, 1.1)
    shear: float = Field(0.0, ge=0, le=60)
    """Largest angle, in degrees to either side."""


class ElasticImage(_Augment):
    """Bend a picture like rubber (Simard et al., 2003): the points of a grid move, and what is between them follows."""

    type: Literal["elastic"]
    strength: float = Field(0.05, gt=0, le=0.5)
    """Largest move of a point along each axis, as a share of the picture's side."""
    knots: int = Field(5, ge=2, le=64)
    """Points along each side."""


class FlipImage(_Augment):
    """Mirror a picture, left to right."""

    type: Literal["flip"]
    probability: float = Field(0.5, gt=0, le=1)
    """Share of the rows that are changed."""


class CropImage(_Augment):
    """Cut out a part of a picture and bring it back to full size (Szegedy et al., 2015)."""

    type: Literal["crop"]
    area: ShareRange = (0.5, 1.0)
    """Share of the picture's area that is kept."""


class EraseImage(_Augment):
    """Blank a rectangle of a picture (Zhong et al., 2020)."""

    type: Literal["erase"]
    area: ShareRange = (0.02, 0.2)
    """Share of the picture's area that is blanked."""


class ColorImage(_Augment):
    """Brighter or darker, with more or less contrast."""

    type: Literal["color"]
    brightness: float = Field(0.2, ge=0, le=10)
    """Largest change to either side, in standard deviations of the picture's values."""
    contrast: FactorRange = (0.8, 1.2)
    """Factor of each value's distance from the picture's mean."""


class Noise(_Augment):
    """Gaussian noise."""

    type: Literal["noise"]
    sigma: Range = (0.0, 0.1)
    """Standard deviation of the noise, in standard deviations of the features; drawn for each row."""


class MaskAudio(_Augment):
    """Blank bands and frames of a spectrogram (SpecAugment; Park et al., 2019)."""

    type: Literal["mask"]
    bands: _Share = 0.2
    """Widest masked block of frequency bands, as a share of all."""
    frames: _Share = 0.2
    """Longest masked block of frames, as a share of all."""
    count: int = Field(1, ge=1, le=16)
    """Blocks of each of the two."""


class ShiftAudio(_Augment):
    """Move sound in time; what is moved out at one end comes in at the other."""

    type: Literal["shift"]
    share: _Share = 0.1
    """Largest move to either side, as a share of the length."""


class GainAudio(_Augment):
    """Louder or softer: of a waveform, as spectrograms are brought to one loudness anyhow."""

    type: Literal["gain"]
    decibels: float = Field(6.0, gt=0, le=60)
    """Largest change to either side."""


class DropTokens(_Augment):
    """Leave out tokens (word dropout; Iyyer et al., 2015); the first and the last stay, and so do words with targets."""

    type: Literal["drop"]
    share: float = Field(0.1, gt=0, lt=1)
    """Probability that a token is left out."""


class SwapTokens(_Augment):
    """Exchange neighbouring tokens (Wei and Zou, 2019); the first and the last stay. Not for words with targets."""

    type: Literal["swap"]
    share: float = Field(0.1, gt=0, le=1)
    """Probability that a token changes places with the next."""


class ScaleSeries(_Augment):
    """Scale each channel by a factor of its own (Um et al., 2017)."""

    type: Literal["scale"]
    sigma: float = Field(0.1, gt=0, le=1)
    """Standard deviation of the factors around 1."""


class WarpSeries(_Augment):
    """Let time run faster and slower along a smooth curve (Um et al., 2017)."""

    type: Literal["warp"]
    strength: float = Field(0.2, gt=0, lt=1)
    """Largest change of the speed, as a share of it."""
    knots: int = Field(4, ge=1, le=64)
    """Points between which the speed changes."""


class MaskSeries(_Augment):
    """Take away all readings of a block of steps."""

    type: Literal["mask"]
    share: _Share = 0.2
    """Longest masked block, as a share of all steps."""


class DropChannels(_Augment):
    """Take away all readings of whole channels, but never of all of them."""

    type: Literal["drop_channels"]
    share: float = Field(0.1, gt=0, lt=1)
    """Probability that a channel is taken away."""


ImageAugment = Annotated[
    AffineImage | ElasticImage | FlipImage | CropImage | EraseImage | ColorImage | Noise,
    Field(discriminator="type"),
]
AudioAugment = Annotated[MaskAudio | ShiftAudio | GainAudio | Noise, Field(discriminator="type")]
TextAugment = Annotated[DropTokens | SwapTokens, Field(discriminator="type")]
SeriesAugment = Annotated[
    ScaleSeries | WarpSeries | MaskSeries | DropChannels | Noise, Field(discriminator="type")
]
Augment = (
    AffineImage
    | ElasticImage
    | FlipImage
    | CropImage
    | EraseImage
    | ColorImage
    | MaskAudio
    | ShiftAudio
    | GainAudio
    | DropTokens
    | SwapTokens
    | ScaleSeries
    | WarpSeries
    | MaskSeries
    | DropChannels
    | Noise
)
"""Of any kind of input."""
