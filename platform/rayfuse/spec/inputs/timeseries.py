"""Time series."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rayfuse.spec.augment import TimeseriesAugment
from rayfuse.spec.cells import CellFormat
from rayfuse.spec.encoders import (
    TimeseriesConvEncoderConfig,
    TimeseriesEncoderConfig,
)
from rayfuse.spec.inputs.base import ColumnInput, reject_field

if TYPE_CHECKING:
    pass


Scaling = Literal["robust", "standard"]
"""`robust`: median and interquartile range, which outliers do not affect; `standard`: mean and standard deviation."""


class TimeseriesInput(ColumnInput, CellFormat):
    """A time series of several channels: lists in the row, or a csv, parquet or JSON file that it names."""

    holds_lists: ClassVar[bool] = True
    length_field: ClassVar[str | None] = "max_steps"
    length_mask: ClassVar[str | None] = "step_mask"
    pads_to_longest: ClassVar[bool] = True

    type: Literal["timeseries"]
    encoder: TimeseriesEncoderConfig = TimeseriesConvEncoderConfig(type="conv")
    """Encoder of this input."""
    channels: list[Annotated[str, Field(min_length=1)]] | Annotated[int, Field(ge=1, le=4096)]
    """Names of the channels, or their number."""
    layout: Literal["channels_first", "channels_last"] = "channels_first"
    """Order of lists in rows, requests and JSON files: a list per channel, or per step. In csv, channels are columns."""
    max_steps: int = Field(1024, ge=1, le=1_000_000)
    """Number of steps to which a longer series is cut; the newest are used."""
    scaling: Scaling = "robust"
    """Method for fitting center and scale."""
    center: list[float] | None = None
    """Subtracted from each channel; by default fitted on the training rows."""
    scale: list[Annotated[float, Field(gt=0)]] | None = None
    """Divisor of each channel after centering; by default fitted on the training rows."""
    augment: list[TimeseriesAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def channel_names(self) -> list[str] | None:
        """Names of the channels, if they have names."""
        return self.channels if isinstance(self.channels, list) else None

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.channels) if isinstance(self.channels, list) else self.channels

    @model_validator(mode="after")
    def _check_channels(self) -> "TimeseriesInput":
        names = self.channel_names
        if names is not None and (not names or len(set(names)) < len(names)):
            reject_field(
                "channels",
                f"{names} has a duplicate; list each channel once"
                if names
                else "[] is empty; list a channel",
            )
        for key, values in (("center", self.center), ("scale", self.scale)):
            if values is not None and len(values) != self.num_channels:
                reject_field(
                    key,
                    f"{len(values)} numbers for {self.num_channels} channels; write one per channel, or leave it out",
                )
        return self
