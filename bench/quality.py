"""`make bench-quality`: results of the recipes of jobs/ on public data, as mean ± standard deviation over seeds, and published figures.

python bench/quality.py [NAME ...] [--seeds N] [--set KEY=VALUE]

DATA is the folder of the data sets, MODELS that of the pretrained encoders, STORAGE where rows and runs go. Each
figure comes from `rayfuse train RECIPE`: the validation rows select, the test rows are read once per seed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import quality_rows
import quality_subtitles
import quality_texts

ROOT = Path(__file__).parents[1]
RAYFUSE = Path(sys.executable).with_name("rayfuse")
NOISES = (0.5, 1.0, 2.0, 4.0)
Trained = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A metric of a trained model, published results, and our goal (0 for none)."""

    name: str
    value: Callable[[Trained], float]
    wanted: float
    known: str = "-"


@dataclass(frozen=True)
class Bench:
    """A recipe, and the figures of its models."""

    recipe: str
    figures: tuple[Figure, ...]
    rows: Callable[[Path, Path], None] | None = None
    """Function that writes rows for a data set in another layout: takes the folders of the data and of the rows."""
    parts: tuple[str, ...] = ("",)
    """Values of PART, each with a separate training; a figure is the mean over them."""
    overrides: tuple[str, ...] = ()
    """Changes of the recipe, as of `rayfuse train --set`."""


def of(metric: str, inputs: str | None = None) -> Callable[[Trained], float]:
    """Return a metric on the test rows, with all inputs or with a subset."""
    return lambda trained: float((trained["by_inputs"][inputs] if inputs else trained["metrics"])[metric])


def noisy(sigma: float) -> Callable[[Trained], float]:
    """Return the difference in accuracy, in points, between both inputs with a noisy clip and the image alone."""

    def value(trained: Trained) -> float:
        alone = float(trained["by_inputs"]["image"]["digit/accuracy"])
        return _accuracy_under_noise(Path(trained["run"]) / "model", trained["test"], sigma) - alone

    return value


def _accuracy_under_noise(folder: Path, test: str, sigma: float) -> float:
    """Return the accuracy with both inputs, with Gaussian noise of `sigma` × standard deviation on each clip's features."""
    import numpy as np

    from rayfuse.data.readers import read_rows
    from rayfuse.data.rows import Row
    from rayfuse.data.samples import Sample
    from rayfuse.model.predictor import Predictor

    predictor, chance = Predictor(folder), np.random.default_rng(0)
    rows = [row for row in read_rows(test) if isinstance(row, Row)]
    right = 0
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        samples: list[Sample] = [predictor.preprocessor.from_row(row) for row in part]
        for sample in samples:
            [clip] = sample.features["audio"]
            for name, values in clip.items():
                noise = chance.standard_normal(values.shape, dtype=np.float32)
                clip[name] = values + noise * sigma * values.std()
        answers = predictor.predict_samples(samples)
        right += sum(
            answer["outputs"]["digit"]["label"] == row.values["label"]
            for answer, row in zip(answers, part, strict=True)
        )
    return right / len(rows)


def speech_rows(source: Path, target: Path) -> None:
    """Write the rows that all benches of jobs/speech_recognition.yaml share."""
    quality_rows.speech(source, target.with_name("speech"))


def grading_rows(source: Path, target: Path) -> None:
    """Write the rows that both benches of jobs/grading.yaml share."""
    quality_rows.grading(source, target.with_name("grading"))


AS_IT_COMES = (
    "inputs.audio.encoder.train=frozen",
    "inputs.audio.max_seconds=30",
    "tasks.transcript.train=frozen",
    "train.epochs=1",
    "data.train=${ROWS}/speech/validation.jsonl",
)
"""Changes with which Whisper is not trained; training rows are required, and not used."""

WITHOUT_REFERENCE = "question+answer"
SCORE_FIGURES = (
    Figure("score, RMSE × 100 (at most)", of("score/rmse"), 0.90, "108.9 mean, 95.9 linear"),
    Figure("score, Pearson's r", of("score/pearson"), 0.55, "48.4 linear, 60.1 between graders"),
    Figure("without the reference answer, RMSE × 100", of("score/rmse", WITHOUT_REFERENCE), 0.0),
    Figure("without the reference answer, Pearson's r", of("score/pearson", WITHOUT_REFERENCE), 0.0),
)
SCORE_ALONE = ("tasks={score: {type: regression}}", "train.param_groups=[]")
"""Changes with which a job of jobs/grading.yaml has no language model."""

BENCHES = {
    "avmnist": Bench(
        "avmnist.yaml",
        (
            Figure("image only, accuracy", of("digit/accuracy", "image"), 0.96, "92.69 SimMLM, 92.61 MoMKE"),
            Figure("audio only, accuracy", of("digit/accuracy", "audio"), 0.96, "91.61 SimMLM"),
            Figure("both, accuracy", of("digit/accuracy", "image+audio"), 0.995, "99.27 SimMLM"),
            *(
                Figure(
                    f"both, noise {sigma:g} on the audio features, minus image only",
                    noisy(sigma),
                    -0.01,
                    known,
                )
                for sigma, known in zip(
                    NOISES, ("plain 95.8", "plain 68.0", "plain 22.4", "plain 11.3"), strict=True
                )
            ),
            Figure("calibration error (at most)", of("digit/ece"), 0.02),
        ),
    ),
    "arithmetic": Bench(
        "arithmetic.yaml",
        (
            Figure("all three inputs, accuracy", of("answer/accuracy"), 0.98, "100 possible"),
            *(
                Figure(
                    f"{inputs}, accuracy",
                    of("answer/accuracy", inputs),
                    ceiling - 0.03,
                    f"{100 * ceiling:g} possible",
                )
                for inputs, ceiling in {
                    "image": 0.335,
                    "audio": 0.335,
                    "text": 0.165,
                    "image+audio": 0.39,
                    "image+text": 0.345,
                    "audio+text": 0.345,
                }.items()
            ),
        ),
    ),
    "openmoji": Bench(
        "openmoji_groups.yaml",
        (
            Figure("8 groups, image+text, accuracy", of("group/accuracy"), 0.88, "85.4 frozen encoders"),
            Figure("image only, accuracy", of("group/accuracy", "image"), 0.0, "72.1"),
            Figure("text only, accuracy", of("group/accuracy", "text"), 0.0, "84.2"),
        ),
    ),
    "retrieval": Bench(
        "openmoji_retrieval.yaml",
        (
            Figure("image → caption among 355, R@1", of("pair/forward_r1"), 0.25, "14.6"),
            Figure("image → caption among 355, R@10", of("pair/forward_r10"), 0.55, "37.7"),
        ),
        quality_rows.captions,
    ),
    "motions": Bench(
        "basic_motions.yaml",
        (Figure("accuracy", of("activity/accuracy"), 1.0, "97.5 1NN-DTW"),),
        quality_rows.motions,
    ),
    "esc10": Bench(
        "esc10.yaml",
        (Figure("mean of 4 folds, accuracy", of("sound/accuracy"), 0.93, "72.7 random forest, 95.7 people"),),
        quality_rows.sounds,
        ("1", "2", "3", "4"),
    ),
    "video": Bench(
        "digit_video.yaml",
        (
            Figure("digit, accuracy", of("digit/accuracy"), 0.98),
            Figure("motion, accuracy", of("motion/accuracy"), 0.98),
        ),
    ),
    "speech": Bench(
        "speech_recognition.yaml",
        (
            Figure("LoRA, spoken captions, word error rate", of("transcript/wer"), 0.0),
            Figure("character error rate", of("transcript/cer"), 0.0),
        ),
        speech_rows,
    ),
    "whisper": Bench(
        "speech_recognition.yaml",
        (
            Figure("as it comes, spoken captions, word error rate", of("transcript/wer"), 0.0),
            Figure("character error rate", of("transcript/cer"), 0.0),
        ),
        speech_rows,
        overrides=AS_IT_COMES,
    ),
    "utterances": Bench(
        "speech_recognition.yaml",
        (
            Figure(
                "as it comes, 10 real utterances, word error rate (at most)",
                of("transcript/wer"),
                0.07,
                "6.6",
            ),
        ),
        speech_rows,
        ("real",),
        AS_IT_COMES,
    ),
    "subtitles": Bench(
        "subtitles.yaml",
        (
            Figure(
                "Whisper base as it comes, videos of 70 s, word error rate",
                quality_subtitles.word_error_rate,
                0.0,
            ),
            Figure(
                "hundredths of a second between sentence and subtitle", quality_subtitles.start_error, 0.0
            ),
            Figure("the test clips alone, word error rate", of("subtitles/wer"), 0.0),
        ),
        quality_rows.subtitles,
    ),
    "faq": Bench(
        "faq.yaml",
        tuple(
            Figure(
                f"question → entry of the knowledge base among 108, R@{top}",
                partial(quality_texts.entry_recall, top),
                wanted,
                known,
            )
            for top, wanted, known in ((1, 0.88, "86.0 frozen MiniLM"), (5, 0.0, "100"))
        ),
        quality_rows.faq,
    ),
    "banking": Bench(
        "banking77.yaml",
        (Figure("77 intents, accuracy", of("intent/accuracy"), 0.935, "92.5 nearest neighbor of MiniLM"),),
    ),
    "travel_acts": Bench(
        "travel_acts.yaml",
        (
            Figure(
                "next acts of the assistant, accuracy", of("acts/accuracy"), 0.62, "57.3 last turn, linear"
            ),
        ),
        quality_rows.travel_acts,
    ),
    "grading": Bench(
        "grading.yaml",
        (
            *SCORE_FIGURES,
            Figure("feedback, exact", of("feedback/exact"), 0.0),
            Figure(
                "feedback without the reference answer, exact", of("feedback/exact", WITHOUT_REFERENCE), 0.0
            ),
            Figure(
                "feedback as the predicted score has it",
                partial(quality_texts.feedback_agreement, quality_rows.verdict),
                0.0,
            ),
        ),
        grading_rows,
    ),
    "scores": Bench("grading.yaml", SCORE_FIGURES, grading_rows, overrides=SCORE_ALONE),
    "home": Bench(
        "smart_home.yaml",
        (
            Figure("all inputs, exact", of("command/exact"), 0.9),
            Figure(
                "without motion and states, exact (at most)",
                partial(quality_texts.without_sensors, "command/exact"),
                0.8,
            ),
            Figure("valid JSON", of("command/valid_json"), 1.0),
            Figure("slot F1", of("command/slot_f1"), 0.0),
        ),
        quality_rows.smart_home,
    ),
    "travel": Bench(
        "travel.yaml",
        (
            Figure("BLEU", of("reply/bleu"), 20.0),
            Figure("token F1", of("reply/token_f1"), 0.0),
        ),
        quality_rows.travel,
    ),
    "photos": Bench(
        "captioning.yaml",
        (
            Figure("CIDEr", of("caption/cider"), 0.0),
            Figure(
                "CIDEr, relative to the nearest neighbor's caption", quality_texts.relative_to_neighbor, 1.15
            ),
            Figure("CIDEr, relative to no image", quality_texts.relative_to_blind, 2.0),
        ),
        quality_rows.photos,
    ),
    "entities": Bench("wnut17.yaml", (Figure("entity F1", of("entities/f1"), 0.40),), quality_rows.entities),
}


def trained(bench: Bench, seed: int, overrides: list[str]) -> Iterator[Trained]:
    """Train a model for each part of a bench with the `rayfuse` command."""
    storage = Path(os.environ["STORAGE"])
    for part in bench.parts:
        environment = {**os.environ, "ROWS": str(storage / "rows"), "PART": part}
        recipe = ROOT / "jobs" / bench.recipe
        options = [f"--set={change}" for change in (f"train.seed={seed}", *bench.overrides, *overrides)]
        command = [str(RAYFUSE), "train", str(recipe), "--json", "--no-resume", *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"{bench.recipe}: rayfuse train ended with {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        job = json.loads((Path(found["run"]) / "job.json").read_text())
        yield {**found, "train": job["data"]["train"], "test": job["data"]["test"]}


def measure(name: str, seeds: Iterable[int], overrides: list[str]) -> None:
    """Train and print the figures of one bench."""
    bench = BENCHES[name]
    if bench.rows is not None:
        bench.rows(Path(os.environ["DATA"]), Path(os.environ["STORAGE"]) / "rows" / name)
    values: dict[str, list[float]] = {figure.name: [] for figure in bench.figures}
    seconds = []
    for seed in seeds:
        models = list(trained(bench, seed, overrides))
        seconds.append(sum(model["seconds"] for model in models))
        for figure in bench.figures:
            values[figure.name].append(statistics.fmean(figure.value(model) for model in models))
    for figure in bench.figures:
        found = values[figure.name]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(
            f"{name:<11} {figure.name:<58} {100 * statistics.fmean(found):6.2f} ± {100 * spread:.2f}"
            f"   reach {f'{100 * figure.wanted:g}' if figure.wanted else '-'}   known {figure.known}",
            flush=True,
        )
    print(f"{name:<11} {len(seconds)} seeds, {statistics.fmean(seconds):.0f} s each", flush=True)


def main() -> None:
    """Run the named benches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such bench; one of: {', '.join(BENCHES)}")
    for variable in ("DATA", "MODELS", "STORAGE"):
        if not os.environ.get(variable):
            parser.error(f"{variable} is not set: name a folder")
    for name in given.names or BENCHES:
        measure(name, range(given.seeds), given.overrides)


if __name__ == "__main__":
    main()
