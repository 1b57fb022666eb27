"""Description of a column, and kinds by its name."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayfuse.formatting import truncate
from rayfuse.schema_inference.media import MediaFacts
from rayfuse.schema_inference.sample import Embedded
from rayfuse.spec.tasks.classes import normalize_label

Kind = Literal[
    "number", "category", "boolean", "text", "image", "audio", "video", "timeseries", "item_sequence", "tabular",
    "id", "date", "unusable",
]  # fmt: skip
"""Kinds of columns; the last three are not used as inputs."""

_MAX_SHOWN = 4
_MAX_SHOWN_CHARS = 60
_MAX_VALUE_CHARS = 24
_ID_NAME = re.compile(
    r"(^|_)(ids?|uuid|guid|index|idx|rowid|hash|sha\d*|md5|url|link|file_?name|file_?path)$|^unnamed_\d+$|^key$"
)
_ENTITY_NAME = re.compile(
    r"^(user|customer|client|patient|subject|session|engine|machine|device|vehicle|speaker|author|account|student|"
    r"person|participant|household|member|dialogue|conversation|document)(_?(no|nr|number|key))?$"
)
_CODE_NAME = re.compile(r"(^|_)(zip|zipcode|postcode|postal_code|code|phone)$")
_SPLIT_NAME = re.compile(r"^(fold|split|partition|subset|kfold)$")


@dataclass(frozen=True)
class SeriesLayout:
    """Channels of a time series and their order in its lists."""

    channels: int | list[str]
    """Number of channels, or their names."""
    steps_first: bool = False
    """True if a list has an entry per step instead of per channel."""


@dataclass(frozen=True)
class Column:
    """A column in a sample of the rows."""

    name: str
    """Name of the column."""
    kind: Kind
    """Kind of the column."""
    note: str
    """Reason of the kind, or of leaving the column out."""
    missing: float = 0.0
    """Share of rows without a value."""
    num_distinct: int = 0
    """Number of distinct values in the sample; 0 if they are not counted."""
    length: int = 0
    """Length that nearly all values have: bytes of texts, items of sequences, steps of series."""
    words: int = 0
    """Number of words that nearly all texts do not exceed."""
    max_items: int = 1
    """Largest number of values in a row."""
    media: MediaFacts = field(default_factory=MediaFacts)
    """Sizes of the files of a column of images, audio or videos."""
    layout: SeriesLayout | None = None
    """Channels of a time series."""
    columns: Mapping[str, "Column"] = field(default_factory=dict)
    """Columns by key, of mappings."""
    is_group: bool = False
    """True if its values identify something that several rows are about."""
    is_iso_time: bool = False
    """True for dates and times that `data.time` reads."""

    @property
    def is_input(self) -> bool:
        """True if the column can be an input."""
        return self.kind not in ("id", "date", "unusable")


def is_blank(value: Any) -> bool:
    """Return whether a value counts as missing: null, a blank text, or an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def canonical(value: Any) -> Any:
    """Return a hashable form of a value, the same for 3, 3.0 and " a" and "a"; files inside rows are all different."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Embedded):
        return id(value)
    if isinstance(value, (list, Mapping)):
        return json.dumps(value, sort_keys=True, default=str)
    return normalize_label(value)


def normalized_name(name: str) -> str:
    """Return a name in lower case with underscores: `patientId`, `Patient ID` and `patient-id` are patient_id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", spaced).strip("_").lower()


def names_id(name: str) -> bool:
    """Return whether a name is that of an identifier, such as `user_id` or an index."""
    return not normalized_name(name) or _ID_NAME.search(normalized_name(name)) is not None


def names_entity(name: str) -> bool:
    """Return whether a name is that of something with several rows, such as `patient`."""
    return _ENTITY_NAME.search(normalized_name(name)) is not None


def names_code(name: str) -> bool:
    """Return whether a name is that of numbers without an order, such as `zip_code`."""
    return _CODE_NAME.search(normalized_name(name)) is not None


def names_split(name: str) -> bool:
    """Return whether a name is that of a column that divides rows into folds or splits."""
    return _SPLIT_NAME.search(normalized_name(name)) is not None


def show_values(values: Sequence[Any]) -> str:
    """Return the most frequent values, for people."""
    common = [str(value) for value, _ in Counter(map(canonical, values)).most_common(_MAX_SHOWN + 1)]
    shown = ", ".join(truncate(value.replace("\n", " "), _MAX_VALUE_CHARS) for value in common[:_MAX_SHOWN])
    return truncate(shown, _MAX_SHOWN_CHARS) + (", …" if len(common) > _MAX_SHOWN else "")


def percentile(lengths: Sequence[int], share: float = 0.98) -> int:
    """Return the length that a share of the values do not exceed."""
    return sorted(lengths)[min(len(lengths) - 1, int(share * len(lengths)))]
