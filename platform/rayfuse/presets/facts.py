"""Facts about a job's training rows and this machine, on which presets depend."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from rayfuse.presets.pretrained import find_pretrained
from rayfuse.spec.inputs import AudioInput, BaseInput, ImageInput, TextInput, TimeseriesInput
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.data.rows import Row

MAX_ROWS = 200_000
"""Rows after which counting ends; presets do not depend on more."""
_MAX_SAMPLE = 512
_MAX_FILES = 64
_LONG = 0.95
"""Quantile of the lengths that must not be cut."""


@dataclass(frozen=True)
class InputFacts:
    """Facts about the values of an input, from a sample of the training rows."""

    length: float | None = None
    """Length that 95% of the values do not exceed: characters of a text, steps of a series, seconds of audio; the median
    longer side of images, in pixels."""
    sample_rate: int | None = None
    """Most frequent sample rate of audio."""
    distinct: int | None = None
    """Number of distinct texts in the sample."""


@dataclass(frozen=True)
class Facts:
    """Facts about a job's training rows and this machine."""

    rows: int
    """Training rows, without those that are held out."""
    inputs: Mapping[str, InputFacts] = field(default_factory=dict)
    """Facts about each input."""
    pretrained: Mapping[str, str] = field(default_factory=dict)
    """Folders of pretrained models on this machine, by type of input."""

    def of(self, name: str) -> InputFacts:
        """Return the facts about an input; without any, empty ones."""
        return self.inputs.get(name, InputFacts())


def gather_facts(job: Job) -> Facts:
    """Count the training rows of a job, and measure a sample of their values.

    Reads at most `MAX_ROWS` rows, and 64 files of each input. Raises DataError as `read_splits` does.
    """
    from rayfuse.data.ingest import iter_train_rows

    count, sample = _sample(iter_train_rows(job))
    held_out = sum(job.data.fractions.values())
    return Facts(
        rows=max(1, round(count * (1 - held_out))),
        inputs={name: _input_facts(name, options, sample) for name, options in job.inputs.items()},
        pretrained=find_pretrained(),
    )


def _sample(rows: "Iterator[Row]") -> "tuple[int, list[Row]]":
    """Return the number of rows, and evenly spaced ones."""
    sample: list[Row] = []
    interval, count = 1, 0
    for row in rows:
        if count == MAX_ROWS:
            break
        if count % interval == 0:
            sample.append(row)
        count += 1
        if len(sample) > _MAX_SAMPLE:
            sample, interval = sample[::2], 2 * interval
    return count, sample


def _input_facts(name: str, options: BaseInput, sample: "Sequence[Row]") -> InputFacts:
    measure = next((measure for kind, measure in _MEASURES.items() if isinstance(options, kind)), None)
    return measure(name, options, sample) if measure else InputFacts()


def _values(name: str, options: BaseInput, sample: "Sequence[Row]") -> Iterator[Any]:
    """Yield the decoded values of an input, or the bytes of its files; invalid ones are reported by validation."""
    from rayfuse.data.samples import row_value
    from rayfuse.errors import InvalidInputError
    from rayfuse.spec.base import is_missing

    for row in sample:
        try:
            value = row_value(name, options, row)
        except InvalidInputError:
            continue
        items = value if options.max_items > 1 and isinstance(value, (list, tuple)) else [value]
        yield from (item for item in items if not is_missing(item))


def _few(sample: "Sequence[Row]") -> "Sequence[Row]":
    return sample[:: max(1, len(sample) // _MAX_FILES)][:_MAX_FILES]


def _text_facts(name: str, options: BaseInput, sample: "Sequence[Row]") -> InputFacts:
    texts = [
        " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for value in _values(name, options, sample)
    ]
    return InputFacts(length=_quantile([float(len(text)) for text in texts]), distinct=len(set(texts)))


def _image_facts(name: str, options: BaseInput, sample: "Sequence[Row]") -> InputFacts:
    from PIL import Image

    sides = []
    for content in _values(name, options, _few(sample)):
        try:
            with Image.open(BytesIO(content)) as image:
                sides.append(float(max(image.size)))
        except Exception:  # noqa: BLE001, S112 - validation reports invalid images
            continue
    return InputFacts(length=statistics.median(sides) if sides else None)


def _audio_facts(name: str, options: BaseInput, sample: "Sequence[Row]") -> InputFacts:
    import soundfile

    seconds, rates = [], []
    for content in _values(name, options, _few(sample)):
        try:
            info = soundfile.info(BytesIO(content))
        except Exception:  # noqa: BLE001, S112 - a format of FFmpeg, or invalid
            continue
        seconds.append(float(info.duration))
        rates.append(int(info.samplerate))
    return InputFacts(_quantile(seconds), statistics.mode(rates) if rates else None)


def _timeseries_facts(name: str, options: BaseInput, sample: "Sequence[Row]") -> InputFacts:
    from rayfuse.errors import RayfuseError
    from rayfuse.modalities import build_modality

    modality, steps = build_modality(options), []
    for value in _values(name, options, _few(sample)):
        try:
            steps.append(float(modality.num_steps(modality.decode(value))))
        except (RayfuseError, ValueError, TypeError):
            continue
    return InputFacts(length=_quantile(steps))


def _quantile(values: list[float]) -> float | None:
    return sorted(values)[math.ceil(_LONG * len(values)) - 1] if values else None


_MEASURES: dict[type[BaseInput], Callable[[str, BaseInput, "Sequence[Row]"], InputFacts]] = {
    TextInput: _text_facts,
    ImageInput: _image_facts,
    AudioInput: _audio_facts,
    TimeseriesInput: _timeseries_facts,
}
