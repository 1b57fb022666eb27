"""Augmentations: random changes of training rows, by type of input."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import SpecModel
from rayfuse.spec.family import CustomConfig, Family, PartOf, families_by_input_type


def _check_range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise PydanticCustomError("range", "not a range; write [LOWEST, HIGHEST], the lower end first")
    return value


_Number = Annotated[float, Field(ge=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Factor = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[_Number, _Number], AfterValidator(_check_range)]
"""Lowest and highest value of a number that is drawn uniformly for each row."""
FractionRange = Annotated[tuple[_Fraction, _Fraction], AfterValidator(_check_range)]
"""Lowest and highest value of a fraction from 0 to 1 that is drawn for each row."""
FactorRange = Annotated[tuple[_Factor, _Factor], AfterValidator(_check_range)]
"""Lowest and highest value of a positive factor that is drawn for each row."""


class BaseAugment(SpecModel):
    """Options of every augmentation."""

    audio_features: ClassVar[Literal["mel", "waveform"] | None] = None
    """The features of an audio input that it applies to; None for both."""

    type: str
    """Kind of augmentation, or the import path of a custom one."""
    p: float = Field(1.0, gt=0, le=1)
    """Probability that a row is changed."""


class AffineImage(BaseAugment):
    """Rotate, translate, scale and shear an image; new pixels have the mean color of its corners."""

    type: Literal["affine"]
    degrees: float = Field(15.0, ge=0, le=180)
    """Largest rotation to either side, in degrees."""
    translate: float = Field(0.1, ge=0, le=1)
    """Largest translation along each axis, as a fraction of the image's side."""
    scale: FactorRange = (0.9, 1.1)
    """Range of the scaling factor."""
    shear: float = Field(0.0, ge=0, le=60)
    """Largest shear to either side, in degrees."""


class ElasticImage(BaseAugment):
    """Elastic deformation of an image (Simard et al., 2003): a grid of control points is displaced."""

    type: Literal["elastic"]
    strength: float = Field(0.05, gt=0, le=0.5)
    """Largest displacement of a control point along each axis, as a fraction of the image's side."""
    control_points: int = Field(5, ge=2, le=64)
    """Control points along each side."""


class FlipImage(BaseAugment):
    """Mirror an image, left to right."""

    type: Literal["horizontal_flip"]
    p: float = Field(0.5, gt=0, le=1)
    """Probability that a row is changed."""


class CropImage(BaseAugment):
    """Crop a random part of an image and resize it to full size (Szegedy et al., 2015)."""

    type: Literal["resized_crop"]
    scale: FractionRange = (0.5, 1.0)
    """Range of the crop's area, as a fraction of the image's."""


class EraseImage(BaseAugment):
    """Erase a random rectangle of an image (Zhong et al., 2020)."""

    type: Literal["erasing"]
    scale: FractionRange = (0.02, 0.2)
    """Range of the rectangle's area, as a fraction of the image's."""


class ColorJitterImage(BaseAugment):
    """Change the brightness and contrast of an image."""

    type: Literal["color_jitter"]
    brightness: float = Field(0.2, ge=0, le=10)
    """Largest change of brightness to either side, in standard deviations of the pixel values."""
    contrast: FactorRange = (0.8, 1.2)
    """Range of the factor of each value's distance from the image's mean."""


class GaussianNoise(BaseAugment):
    """Add Gaussian noise."""

    type: Literal["gaussian_noise"]
    sigma: Range = (0.0, 0.1)
    """Range of the noise's standard deviation, in standard deviations of the features."""


class SpecAugmentAudio(BaseAugment):
    """Mask blocks of frequency bands and frames of a spectrogram (SpecAugment; Park et al., 2019)."""

    audio_features: ClassVar[Literal["mel", "waveform"] | None] = "mel"

    type: Literal["spec_augment"]
    freq_mask_ratio: _Fraction = 0.2
    """Largest masked block of frequency bands, as a fraction of all bands."""
    time_mask_ratio: _Fraction = 0.2
    """Largest masked block of frames, as a fraction of all frames."""
    num_masks: int = Field(1, ge=1, le=16)
    """Number of masked blocks along each axis."""


class ShiftAudio(BaseAugment):
    """Shift audio in time, cyclically."""

    type: Literal["shift"]
    max_shift: _Fraction = 0.1
    """Largest shift to either side, as a fraction of the length."""


class GainAudio(BaseAugment):
    """Change the volume of a waveform; spectrograms are normalized, so it would not change them."""

    audio_features: ClassVar[Literal["mel", "waveform"] | None] = "waveform"

    type: Literal["gain"]
    max_gain_db: float = Field(6.0, gt=0, le=60)
    """Largest gain to either side, in decibels."""


class DropTokens(BaseAugment):
    """Drop tokens (word dropout; Iyyer et al., 2015), except the first, the last, and words with targets."""

    type: Literal["token_dropout"]
    drop_prob: float = Field(0.1, gt=0, lt=1)
    """Probability that a token is dropped."""


class SwapTokens(BaseAugment):
    """Swap neighboring tokens (Wei and Zou, 2019), except the first and the last. Not for words with targets."""

    type: Literal["token_swap"]
    swap_prob: float = Field(0.1, gt=0, le=1)
    """Probability that a token is swapped with the next."""


class ScaleTimeseries(BaseAugment):
    """Multiply each channel by a random factor (Um et al., 2017)."""

    type: Literal["scale"]
    sigma: float = Field(0.1, gt=0, le=1)
    """Standard deviation of the factors around 1."""


class TimeWarpTimeseries(BaseAugment):
    """Vary the speed of time along a smooth curve (Um et al., 2017)."""

    type: Literal["time_warp"]
    strength: float = Field(0.2, gt=0, lt=1)
    """Largest change of the speed, as a fraction of it."""
    control_points: int = Field(4, ge=1, le=64)
    """Control points of the speed."""


class TimeMaskTimeseries(BaseAugment):
    """Mask all channels in a block of steps."""

    type: Literal["time_mask"]
    time_mask_ratio: _Fraction = 0.2
    """Largest masked block, as a fraction of all steps."""


class DropChannels(BaseAugment):
    """Mask whole channels, but never all of them."""

    type: Literal["drop_channels"]
    drop_prob: float = Field(0.1, gt=0, lt=1)
    """Probability that a channel is masked."""


class CustomAugment(CustomConfig, BaseAugment):
    """A subclass of rayfuse.modalities.augment.Augmentation, by import path."""

    base_class: ClassVar[str] = "rayfuse.modalities.augment.base:Augmentation"


_IMAGE = "rayfuse.modalities.augment.image"
_AUDIO = "rayfuse.modalities.augment.audio"
_TEXT = "rayfuse.modalities.augment.text"
_TIMESERIES = "rayfuse.modalities.augment.timeseries"

AUGMENTATIONS: dict[str, Family[BaseAugment]] = families_by_input_type(
    "augmentation",
    {
        "image": {
            AffineImage: f"{_IMAGE}:affine",
            ElasticImage: f"{_IMAGE}:elastic",
            FlipImage: f"{_IMAGE}:horizontal_flip",
            CropImage: f"{_IMAGE}:resized_crop",
            EraseImage: f"{_IMAGE}:erasing",
            ColorJitterImage: f"{_IMAGE}:color_jitter",
            GaussianNoise: f"{_IMAGE}:gaussian_noise",
        },
        "audio": {
            SpecAugmentAudio: f"{_AUDIO}:spec_augment",
            ShiftAudio: f"{_AUDIO}:shift",
            GainAudio: f"{_AUDIO}:gain",
            GaussianNoise: f"{_AUDIO}:gaussian_noise",
        },
        "text": {
            DropTokens: f"{_TEXT}:token_dropout",
            SwapTokens: f"{_TEXT}:token_swap",
        },
        "timeseries": {
            ScaleTimeseries: f"{_TIMESERIES}:scale",
            TimeWarpTimeseries: f"{_TIMESERIES}:time_warp",
            TimeMaskTimeseries: f"{_TIMESERIES}:time_mask",
            DropChannels: f"{_TIMESERIES}:drop_channels",
            GaussianNoise: f"{_TIMESERIES}:gaussian_noise",
        },
        "custom": {},
    },
    custom=CustomAugment,
)
"""The built-in augmentations of each type of input; those of `custom`, none, are for all other types."""

ImageAugment = Annotated[BaseAugment, PartOf(lambda: AUGMENTATIONS["image"])]
"""Any augmentation of images."""
AudioAugment = Annotated[BaseAugment, PartOf(lambda: AUGMENTATIONS["audio"])]
"""Any augmentation of audio."""
TextAugment = Annotated[BaseAugment, PartOf(lambda: AUGMENTATIONS["text"])]
"""Any augmentation of text."""
TimeseriesAugment = Annotated[BaseAugment, PartOf(lambda: AUGMENTATIONS["timeseries"])]
"""Any augmentation of time series."""
CustomOnlyAugment = Annotated[BaseAugment, PartOf(lambda: AUGMENTATIONS["custom"])]
"""A custom augmentation, for types of inputs without built-in ones."""
