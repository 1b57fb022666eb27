"""Inputs: the modalities of a model, their columns, and how values are prepared."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import AlignConfig
from rayfuse.spec.augment import (
    AudioAugment,
    CustomOnlyAugment,
    ImageAugment,
    SwapTokens,
    TextAugment,
    TimeseriesAugment,
)
from rayfuse.spec.base import JobSection, Problems, make_column_optional
from rayfuse.spec.cells import CellFormat, CellType
from rayfuse.spec.encoders import (
    ENCODERS,
    AudioEncoderConfig,
    BaseEncoderConfig,
    ConvEncoderConfig,
    EmbeddingEncoderConfig,
    FramesEncoderConfig,
    HuggingFaceEncoderConfig,
    ImageEncoderConfig,
    ItemSequenceEncoderConfig,
    MLPEncoderConfig,
    NGramsEncoderConfig,
    TabularEncoderConfig,
    TextEncoderConfig,
    TimeseriesConvEncoderConfig,
    TimeseriesEncoderConfig,
    VideoEncoderConfig,
)
from rayfuse.spec.family import CustomConfig, Family, PartOf
from rayfuse.spec.table_columns import CategoryColumn, Column, ColumnKind, NumberColumn, parse_columns
from rayfuse.spec.templates import check_template, fill_template, template_columns

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

Scaling = Literal["robust", "standard"]
"""`robust`: median and interquartile range, which outliers do not affect; `standard`: mean and standard deviation."""

ValueRange = Literal["auto", "dtype"] | tuple[float, float]
"""`auto`: fitted on the training rows; `dtype`: 0 to 65535 for integers, 0 to 1 for floats; or [low, high]."""


class BaseInput(JobSection):
    """Options of every input."""

    needs_column: ClassVar[bool] = True
    """True if it needs a `column`, which is by default the input's name."""
    length_field: ClassVar[str | None] = None
    """The field that bounds the length of a value; None if all values have one size."""
    length_mask: ClassVar[str | None] = None
    """The feature with one entry per step of a value; None if there is none."""
    pads_to_longest: ClassVar[bool] = False
    """True if values are padded to the longest of a batch."""
    has_words: ClassVar[bool] = False
    """True if a value is a text, which may be given as a list of words."""

    type: str
    """Kind of input, or the import path of a custom one."""
    encoder: BaseEncoderConfig
    """Encoder of this input."""
    optional: bool = False
    """True if rows and requests may lack this input."""
    max_items: int = Field(1, ge=1, le=256)
    """Largest number of values per row; above 1, rows and requests contain lists, such as several images."""
    align: AlignConfig | None = None
    """Projection of this input to the common width; by default as `align` of the job."""
    augment: list[CustomOnlyAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def source_columns(self) -> dict[str, CellType]:
        """The columns of the rows that it reads → how their cells are parsed in a csv file."""
        raise NotImplementedError

    @property
    def column_key(self) -> str:
        """The field that names those columns."""
        raise NotImplementedError

    @property
    def reads_mapping(self) -> bool:
        """True if a value is a mapping of several columns of a row."""
        return False

    @property
    def fallback_input(self) -> str | None:
        """The input whose value is used if a request contains none for this one."""
        return None

    @property
    def required_in_request(self) -> bool:
        """True if every request must contain it."""
        return not self.optional and self.fallback_input is None

    def read(self, values: Mapping[str, Any]) -> Any:
        """Return its raw value in a row; None if the row has none."""
        raise NotImplementedError


class ColumnInput(BaseInput):
    """Options of an input that is one column of the rows."""

    model_config = ConfigDict(json_schema_extra=make_column_optional)

    holds_lists: ClassVar[bool] = False
    """True if a single value is a list or a mapping."""

    column: str = Field(min_length=1)
    """Column of the rows; by default the input's name."""

    @property
    def source_columns(self) -> dict[str, CellType]:
        return {self.column: "json" if self.max_items > 1 or self.holds_lists else "str"}

    @property
    def column_key(self) -> str:
        return "column"

    def read(self, values: Mapping[str, Any]) -> Any:
        return values.get(self.column)


class ImageInput(ColumnInput):
    """An image, in any format that Pillow reads."""

    type: Literal["image"]
    encoder: ImageEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    size: int = Field(224, ge=8, le=4096)
    """Side in pixels to which images are resized (with a Hugging Face encoder, its own processor decides)."""
    range: ValueRange = "auto"
    """Values shown as black and white, of images with more than 8 bits per channel; those of 8 bits have 0 and 255.

    `auto`: the range of the training rows without far outliers. `dtype`: 0 to 65535 for integers, 0 to 1 for floats.
    """
    augment: list[ImageAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @model_validator(mode="after")
    def _check_range(self) -> "ImageInput":
        if isinstance(self.range, tuple) and self.range[0] >= self.range[1]:
            _reject("range", f"{list(self.range)} is empty; write [low, high], the lower value first")
        return self


class AudioInput(ColumnInput):
    """Audio, in any format that libsndfile or FFmpeg reads, mixed down to one channel.

    The audio of a video is an input as well: `audio_of` names the video.
    """

    length_field: ClassVar[str | None] = "max_seconds"

    type: Literal["audio"]
    encoder: AudioEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    sample_rate: int = Field(16000, ge=1000, le=192000)
    """Samples per second after resampling."""
    max_seconds: float = Field(10.0, gt=0, le=3600)
    """Length in seconds: longer clips are cut, shorter ones padded with silence."""
    features: Literal["mel", "waveform"] = "mel"
    """Features for the encoder: a log-mel spectrogram, or the samples. A Hugging Face encoder uses its own."""
    n_mels: int = Field(40, ge=4, le=256)
    """Mel bands of the spectrogram, of 32 ms windows every 10 ms."""
    audio_of: str | None = None
    """A video input whose audio this is. `column` is then the video's, and requests need not contain it."""
    augment: list[AudioAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def fallback_input(self) -> str | None:
        return self.audio_of

    def validate_in_job(self, job: "Job") -> Problems:
        if self.features == "waveform" and not self.encoder.reads_waveforms:
            yield "features", f"waveform is not supported by the {self.encoder.type} encoder; use mel"
        if not isinstance(self.encoder, HuggingFaceEncoderConfig):
            yield from self._validate_augment()
        if self.audio_of is not None:
            yield from self._validate_audio_of(job)

    def _validate_augment(self) -> Problems:
        for number, step in enumerate(self.augment):
            if step.audio_features not in (None, self.features):
                yield (
                    f"augment.{number}",
                    f"`{step.type}` applies to {step.audio_features}, and features are `{self.features}`; leave it out",
                )

    def _validate_audio_of(self, job: "Job") -> Problems:
        videos = {name: source for name, source in job.inputs.items() if isinstance(source, VideoInput)}
        if self.audio_of not in videos:
            known = f"one of: {', '.join(videos)}" if videos else "this job has none"
            yield "audio_of", f"no video input `{self.audio_of}`; {known}"
        elif videos[self.audio_of].max_items != self.max_items:
            wanted = videos[self.audio_of].max_items
            yield (
                "max_items",
                f"{self.max_items} is not {wanted}, which `{self.audio_of}` has; use {wanted}",
            )


class VideoInput(ColumnInput):
    """A video, in any format that FFmpeg reads. Frames are sampled evenly by time.

    Its audio is a separate input with `audio_of`.
    """

    length_field: ClassVar[str | None] = "num_frames"
    length_mask: ClassVar[str | None] = "frame_mask"
    pads_to_longest: ClassVar[bool] = True

    type: Literal["video"]
    encoder: VideoEncoderConfig = FramesEncoderConfig(type="frames", encoder=ConvEncoderConfig(type="conv"))
    """Encoder of this input."""
    num_frames: int = Field(8, ge=1, le=512)
    """Frames to sample, each from the middle of an equal part of the clip; fewer if it has fewer."""
    size: int = Field(112, ge=8, le=2048)
    """Side in pixels to which frames are resized."""
    max_seconds: float = Field(60.0, gt=0, le=7200)
    """Length in seconds after which a clip is cut."""


class TextInput(ColumnInput):
    """A text, tokenized by the encoder's own tokenizer; encoders trained from scratch read UTF-8 bytes or n-grams.

    A list of words is a text too.
    """

    length_field: ClassVar[str | None] = "max_tokens"
    length_mask: ClassVar[str | None] = "attention_mask"
    pads_to_longest: ClassVar[bool] = True
    has_words: ClassVar[bool] = True

    type: Literal["text"]
    encoder: TextEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    max_tokens: int = Field(128, ge=1, le=32768)
    """Number of tokens after which a text is cut: those of the tokenizer, bytes, or words of the encoder `ngrams`."""
    template: Annotated[str, AfterValidator(check_template)] | None = None
    """Text from several columns instead of `column`, as in "{title}: {body}". Missing values are empty, and a line of the
    template whose columns all are missing is left out."""
    augment: list[TextAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def source_columns(self) -> dict[str, CellType]:
        if self.template is None:
            return super().source_columns
        return dict.fromkeys(template_columns(self.template), "str")

    @property
    def column_key(self) -> str:
        return "column" if self.template is None else "template"

    @property
    def reads_mapping(self) -> bool:
        return self.template is not None

    def read(self, values: Mapping[str, Any]) -> Any:
        return super().read(values) if self.template is None else fill_template(self.template, values)

    def validate_in_job(self, job: "Job") -> Problems:
        if self.template is not None and self.max_items > 1:
            yield (
                "max_items",
                f"{self.max_items} is not 1, and `template` builds one text; leave one of them out",
            )
        for number, step in enumerate(self.augment):
            if isinstance(step, SwapTokens) and isinstance(self.encoder, NGramsEncoderConfig):
                yield (
                    f"augment.{number}",
                    "`token_swap` has no effect on n-grams, which have no order; use `token_dropout`",
                )


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
            _reject(
                "channels",
                f"{names} has a duplicate; list each channel once"
                if names
                else "[] is empty; list a channel",
            )
        for key, values in (("center", self.center), ("scale", self.scale)):
            if values is not None and len(values) != self.num_channels:
                _reject(
                    key,
                    f"{len(values)} numbers for {self.num_channels} channels; write one per channel, or leave it out",
                )
        return self


class TabularInput(BaseInput):
    """Columns of a table: numbers, which are scaled, and categories. Any of them may be missing."""

    needs_column: ClassVar[bool] = False

    type: Literal["tabular"]
    encoder: TabularEncoderConfig = MLPEncoderConfig(type="mlp")
    """Encoder of this input."""
    columns: Annotated[
        dict[str, Column],
        Field(min_length=1),
        BeforeValidator(parse_columns, json_schema_input_type=list[str] | dict[str, ColumnKind | Column]),
    ]
    """`{age: number, city: category}`, or a list of names whose kinds are inferred from the training rows.

    They are columns of the rows themselves, unless `column` names one that contains them.
    """
    column: str | None = Field(None, min_length=1)
    """Column of the rows with a mapping {column: value}, or, with `max_items`, a list of such mappings."""
    min_frequency: int = Field(2, ge=1)
    """Number of training rows below which a category is unknown, so that the model learns an embedding of `unknown`."""

    @property
    def numeric_columns(self) -> list[str]:
        """Names of the number columns, in the order of the features `numbers` and `missing`."""
        return [name for name, column in self.columns.items() if isinstance(column, NumberColumn)]

    @property
    def category_vocabularies(self) -> dict[str, list[str]]:
        """Known values of each category column, in the order of the feature `categories`; their codes start at 2."""
        return {
            name: column.vocabulary or []
            for name, column in self.columns.items()
            if isinstance(column, CategoryColumn)
        }

    @property
    def source_columns(self) -> dict[str, CellType]:
        if self.column is not None:
            return {self.column: "json"}
        kinds = self.columns.items()
        cells: dict[str, CellType] = {"inferred": "inferred", "number": "float", "category": "category"}
        return {name: cells[kind.type] for name, kind in kinds}

    @property
    def column_key(self) -> str:
        return "columns" if self.column is None else "column"

    @property
    def reads_mapping(self) -> bool:
        return self.column is None

    def read(self, values: Mapping[str, Any]) -> Any:
        if self.column is not None:
            return values.get(self.column)
        found = {name: values.get(name) for name in self.columns}
        return found if any(value is not None and value == value for value in found.values()) else None

    def validate_in_job(self, job: "Job") -> Problems:
        if self.max_items > 1 and self.column is None:
            yield (
                "max_items",
                f"{self.max_items} needs a `column` with a list of mappings; set it, or leave max_items out",
            )


class ItemSequenceInput(ColumnInput):
    """A sequence of items, such as a user's purchases: a list of ids, or of {"id": …, "time": …}."""

    holds_lists: ClassVar[bool] = True
    length_field: ClassVar[str | None] = "max_length"
    length_mask: ClassVar[str | None] = "item_mask"
    pads_to_longest: ClassVar[bool] = True

    type: Literal["item_sequence"]
    encoder: ItemSequenceEncoderConfig = EmbeddingEncoderConfig(type="embedding")
    """Encoder of this input."""
    max_length: int = Field(64, ge=1, le=65536)
    """Number of items to which a longer sequence is cut; the newest are used."""
    min_frequency: int = Field(2, ge=1)
    """Occurrences in the training rows below which an item is unknown, so that the model learns an embedding of
    `unknown`."""
    vocabulary: list[str] | None = None
    """Known items, as text; by default those of the training rows, most frequent first."""


class CustomInput(CustomConfig, ColumnInput):
    """A subclass of rayfuse.modalities.Modality, by import path; its encoder is a custom one too."""

    base_class: ClassVar[str] = "rayfuse.modalities.base:Modality"
    holds_lists: ClassVar[bool] = True
    pads_to_longest: ClassVar[bool] = True

    encoder: Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["custom"])]
    """A custom encoder."""


INPUTS: Family[BaseInput] = Family(
    "input",
    {
        ImageInput: "rayfuse.modalities.image:ImageModality",
        AudioInput: "rayfuse.modalities.audio:AudioModality",
        VideoInput: "rayfuse.modalities.video:VideoModality",
        TextInput: "rayfuse.modalities.text:TextModality",
        TimeseriesInput: "rayfuse.modalities.timeseries:TimeSeriesModality",
        TabularInput: "rayfuse.modalities.tabular:TabularModality",
        ItemSequenceInput: "rayfuse.modalities.item_sequence:ItemSequenceModality",
    },
    custom=CustomInput,
)
"""The built-in types of inputs."""

Input = Annotated[BaseInput, PartOf(lambda: INPUTS)]
"""Any input."""


def default_columns(inputs: Any) -> Any:
    """Set the column of each input without one to the input's name; for the audio of a video, to the video's column."""
    if not isinstance(inputs, dict):
        return inputs
    return {name: _with_column(name, block, inputs) for name, block in inputs.items()}


def _with_column(name: str, block: Any, inputs: Mapping[str, Any]) -> Any:
    config = INPUTS.config_class(block.get("type")) if isinstance(block, dict) else None
    if not isinstance(block, dict) or (
        config is not None and issubclass(config, BaseInput) and not config.needs_column
    ):
        return block
    video_name = block.get("audio_of")
    video = inputs.get(video_name) if isinstance(video_name, str) else None
    default = video.get("column", video_name) if isinstance(video, dict) else name
    return {"column": default, **block}


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("input", "{reason}", {"reason": reason, "path": path})
