"""The inputs of a model: where each comes from, and how it is prepared."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import Align
from rayfuse.spec.augment import AudioAugment, ImageAugment, SeriesAugment, TextAugment
from rayfuse.spec.base import Block, Part, column_may_be_left_out
from rayfuse.spec.encoders import (
    AudioEncoder,
    CustomEncoder,
    HuggingFaceEncoder,
    ImageEncoder,
    SequenceEncoder,
    SeriesEncoder,
    TableEncoder,
    TextEncoder,
    VideoEncoder,
)
from rayfuse.spec.tasks import Cell

Scaling = Literal["robust", "standard"]
"""`robust`: median and interquartile range, which a few wild values do not move; `standard`: mean and deviation."""


class _Input(Part):
    optional: bool = False
    """Rows and requests may leave this input out."""
    max_items: int = Field(1, ge=1, le=256)
    """Above 1, rows and requests give a list of up to so many values, such as several pictures."""
    align: Align | None = None
    """How it is brought to the common width; where left out, as `align` of the job says."""

    @property
    def columns_read(self) -> dict[str, Cell]:
        """The columns of the rows that it reads, and what their cells are in a csv file."""
        raise NotImplementedError

    @property
    def columns_from(self) -> str:
        """The key of its block that names those columns."""
        raise NotImplementedError

    @property
    def taken_from(self) -> str | None:
        """The input whose value it reads where a request gives it none of its own."""
        return None

    @property
    def demanded(self) -> bool:
        """Whether every request must name it."""
        return not self.optional and self.taken_from is None

    def read(self, values: Mapping[str, Any]) -> Any:
        """Its raw value in a row; None where the row has none."""
        raise NotImplementedError


class _ColumnInput(_Input):
    model_config = ConfigDict(json_schema_extra=column_may_be_left_out)

    _holds_lists: ClassVar[bool] = False

    column: str = Field(min_length=1)
    """Column of the rows; the input's own name where absent."""

    @property
    def columns_read(self) -> dict[str, Cell]:
        return {self.column: "json" if self.max_items > 1 or self._holds_lists else "text"}

    @property
    def columns_from(self) -> str:
        return "column"

    def read(self, values: Mapping[str, Any]) -> Any:
        return values.get(self.column)


class ImageInput(_ColumnInput):
    """A picture: anything Pillow reads."""

    type: Literal["image"]
    encoder: ImageEncoder
    size: int = Field(224, ge=8, le=4096)
    """Pictures are resized to size × size pixels (a Hugging Face encoder's own processor decides instead)."""
    augment: list[ImageAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""


class AudioInput(_ColumnInput):
    """Sound: anything libsndfile or FFmpeg reads, of any rate and channels, mixed down to one channel.

    The sound track of a video is an input as well: `track_of` names the video.
    """

    type: Literal["audio"]
    encoder: AudioEncoder
    sample_rate: int = Field(16000, ge=1000, le=192000)
    """Samples per second after resampling."""
    max_seconds: float = Field(10.0, gt=0, le=3600)
    """Longer clips are cut, shorter ones padded with silence."""
    features: Literal["mel", "waveform"] = "mel"
    """What the encoder reads: a log-mel spectrogram, or the samples. A Hugging Face encoder decides for itself."""
    mels: int = Field(40, ge=4, le=256)
    """Bands of the spectrogram, of 32 ms windows every 10 ms."""
    track_of: str | None = None
    """A video input: this is its sound track. `column` is then the video's, and requests need not give it."""
    augment: list[AudioAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""

    @property
    def taken_from(self) -> str | None:
        return self.track_of

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        own = isinstance(self.encoder, (CustomEncoder, HuggingFaceEncoder))
        if self.features == "waveform" and not own:
            yield "features", f"the {self.encoder.type} encoder reads `mel`; leave it out"
        if not isinstance(self.encoder, HuggingFaceEncoder):
            yield from self._augment_problems()
        if self.track_of is not None:
            yield from self._track_problems(job)

    def _augment_problems(self) -> Iterable[tuple[str, str]]:
        of_others = {"mel": ("gain", "waveforms"), "waveform": ("mask", "spectrograms")}
        refused, kind = of_others[self.features]
        for number, step in enumerate(self.augment):
            if step.type == refused:
                yield f"augment.{number}", f"`{refused}` is for {kind}, and features are `{self.features}`"

    def _track_problems(self, job: Any) -> Iterable[tuple[str, str]]:
        videos = [name for name, options in job.inputs.items() if options.type == "video"]
        if self.track_of not in videos:
            named = f"one of: {', '.join(videos)}" if videos else "this job has none"
            yield "track_of", f"`{self.track_of}` is no video input; {named}"
        elif job.inputs[self.track_of].max_items != self.max_items:
            most = job.inputs[self.track_of].max_items
            yield (
                "max_items",
                f"{self.max_items}, but `{self.track_of}` has {most}, one track for each; write {most}",
            )


class VideoInput(_ColumnInput):
    """A video: anything FFmpeg reads. Frames are sampled evenly by time; its sound is an audio input, `track_of`."""

    type: Literal["video"]
    encoder: VideoEncoder
    frames: int = Field(8, ge=1, le=512)
    """Frames that are looked at, each from the middle of an equal part of the clip; fewer where it has fewer."""
    size: int = Field(112, ge=8, le=2048)
    """Frames are resized to size × size pixels."""
    max_seconds: float = Field(60.0, gt=0, le=7200)
    """Of a longer clip only so much is looked at, from its beginning."""


class TextInput(_ColumnInput):
    """A text, tokenized by the encoder's own tokenizer; `conv` reads UTF-8 bytes. A list of words is a text too."""

    type: Literal["text"]
    encoder: TextEncoder
    max_tokens: int = Field(128, ge=1, le=32768)
    """Longer texts are cut."""
    augment: list[TextAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""


class SeriesInput(_ColumnInput):
    """Readings of several channels over time: lists in the row, or a csv, parquet or JSON file that it names."""

    _holds_lists: ClassVar[bool] = True

    type: Literal["series"]
    encoder: SeriesEncoder
    channels: list[Annotated[str, Field(min_length=1)]] | Annotated[int, Field(ge=1, le=4096)]
    """Names of the channels, or how many there are."""
    max_steps: int = Field(1024, ge=1, le=1_000_000)
    """Of a longer series the newest steps are read."""
    scaling: Scaling = "robust"
    center: list[float] | None = None
    """What is subtracted, a number per channel; found in the training rows where absent."""
    scale: list[Annotated[float, Field(gt=0)]] | None = None
    """What the rest is divided by, a number per channel; found in the training rows where absent."""
    augment: list[SeriesAugment] = Field(default_factory=list)
    """Random changes of training rows, one after the other."""

    @property
    def names(self) -> list[str] | None:
        """Names of the channels, where they have any."""
        return self.channels if isinstance(self.channels, list) else None

    @property
    def count(self) -> int:
        """How many channels there are."""
        return len(self.channels) if isinstance(self.channels, list) else self.channels

    @model_validator(mode="after")
    def _check_channels(self) -> "SeriesInput":
        names = self.names
        if names is not None and (not names or len(set(names)) < len(names)):
            _refuse("channels", f"{names}: name each channel once" if names else "name at least one channel")
        for key, values in (("center", self.center), ("scale", self.scale)):
            if values is not None and len(values) != self.count:
                _refuse(
                    key,
                    f"{len(values)} numbers for {self.count} channels; give one for each, or leave it out",
                )
        return self


class InferredColumn(Block):
    """A column whose kind is found in the training rows: numbers if all of its values are, else categories."""

    type: Literal["inferred"] = "inferred"


class NumberColumn(Block):
    """A column of numbers, scaled by what the training rows tell."""

    type: Literal["number"] = "number"
    center: float | None = None
    """What is subtracted; found in the training rows where absent."""
    scale: float | None = Field(None, gt=0)
    """What the rest is divided by; found in the training rows where absent."""


class CategoryColumn(Block):
    """A column of names out of a list; one that is not in it is `unknown`."""

    type: Literal["category"] = "category"
    vocabulary: list[str] | None = None
    """The known values, as text; found in the training rows (most frequent first) where absent."""


Column = Annotated[InferredColumn | NumberColumn | CategoryColumn, Field(discriminator="type")]
_Kind = Literal["inferred", "number", "category"]


def _columns(value: Any) -> Any:
    """A list of names means that kinds are inferred; a kind by its name alone is a block of that type."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise PydanticCustomError("columns", "`{name}` is given twice", {"name": twice})
        value = dict.fromkeys(value, "inferred")
    if not isinstance(value, dict):
        return value
    return {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in value.items()}


class TableInput(_Input):
    """Columns of a table: numbers, scaled robustly, and categories. A value may be missing in any of them."""

    type: Literal["table"]
    encoder: TableEncoder
    columns: Annotated[
        dict[str, Column],
        Field(min_length=1),
        BeforeValidator(_columns, json_schema_input_type=list[str] | dict[str, _Kind | Column]),
    ]
    """`{age: number, city: category}`, or a list of names whose kinds are found in the training rows.

    They are columns of the rows themselves, unless `column` names one that holds them.
    """
    column: str | None = Field(None, min_length=1)
    """A column of the rows that holds a mapping {column: value}, or, with `max_items`, a list of such."""
    min_count: int = Field(2, ge=1)
    """A category that fewer training rows have is unknown; so the model learns what unknown means."""

    @property
    def numbers(self) -> list[str]:
        """Names of the number columns, in the order of the features `numbers` and `missing`."""
        return [name for name, column in self.columns.items() if isinstance(column, NumberColumn)]

    @property
    def categories(self) -> dict[str, list[str]]:
        """Known values of each category column, in the order of the feature `categories`; their codes start at 2."""
        return {
            name: column.vocabulary or []
            for name, column in self.columns.items()
            if isinstance(column, CategoryColumn)
        }

    @property
    def columns_read(self) -> dict[str, Cell]:
        if self.column is not None:
            return {self.column: "json"}
        kinds = self.columns.items()
        return {name: "text" if isinstance(kind, CategoryColumn) else "number" for name, kind in kinds}

    @property
    def columns_from(self) -> str:
        return "columns" if self.column is None else "column"

    def read(self, values: Mapping[str, Any]) -> Any:
        if self.column is not None:
            return values.get(self.column)
        found = {name: values.get(name) for name in self.columns}
        return found if any(value is not None and value == value for value in found.values()) else None

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.max_items > 1 and self.column is None:
            yield (
                "max_items",
                "a row holds one set of its own columns; name the `column` that holds a list of mappings",
            )


class SequenceInput(_ColumnInput):
    """A history of items, such as what a user bought: a list of ids, or of {"id": …, "time": …}."""

    _holds_lists: ClassVar[bool] = True

    type: Literal["sequence"]
    encoder: SequenceEncoder
    length: int = Field(64, ge=1, le=65536)
    """Of a longer history the newest items are read."""
    min_count: int = Field(2, ge=1)
    """An item that occurs fewer times in the training rows is unknown; so the model learns what unknown means."""
    vocabulary: list[str] | None = None
    """The known items, as text; found in the training rows (most frequent first) where absent."""


Input = Annotated[
    ImageInput | AudioInput | VideoInput | TextInput | SeriesInput | TableInput | SequenceInput,
    Field(discriminator="type"),
]


def default_columns(inputs: Any) -> Any:
    """An input reads the column of its own name unless it says otherwise; a sound track its video's."""
    if not isinstance(inputs, dict):
        return inputs
    return {name: _with_column(name, block, inputs) for name, block in inputs.items()}


def _with_column(name: str, block: Any, inputs: Mapping[str, Any]) -> Any:
    if not isinstance(block, dict) or block.get("type") == "table":
        return block
    of = block.get("track_of")
    video = inputs.get(of) if isinstance(of, str) else None
    default = video.get("column", of) if isinstance(video, dict) else name
    return {"column": default, **block}


def _refuse(path: str, reason: str) -> None:
    raise PydanticCustomError("input", "{reason}", {"reason": reason, "path": path})
