"""Fraction of padding tokens in an epoch of real reviews, with and without `train.group_by_length`."""

import tempfile
from pathlib import Path
from typing import Any

from throughput import SHARED

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
LIMIT = 0.10
BATCH = 32


def run() -> None:
    """Print both fractions; requires the reviews of $SHARED/data/tabular_text and the tokenizer of models/minilm."""
    reviews = SHARED / "data" / "tabular_text" / "womens_clothing_reviews_1000.csv"
    if not reviews.is_file() or not (MODELS / "minilm").is_dir():
        print(f"padding     skipped: requires {reviews} and {MODELS / 'minilm'}; set SHARED")
        return
    fractions = {by_length: _padding_fraction(reviews, by_length) for by_length in (False, True)}
    print(f"padding     in the order of the seed     {fractions[False]:6.1%} of tokens")
    print(f"padding     train.group_by_length: true  {fractions[True]:6.1%} of tokens   at most {LIMIT:.0%}")


def _padding_fraction(reviews: Path, by_length: bool) -> float:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.data.loader import BatchLoader
    from rayfuse.data.sampler import BatchSampler, SampleCache
    from rayfuse.data.samples import Preprocessor

    with tempfile.TemporaryDirectory() as storage:
        job, dataset = load_dataset(_job(reviews, by_length, storage))
        rows = dataset.splits["train"]
        store = SampleCache(rows, Preprocessor(job.inputs, job.tasks))
        masks = [
            batch.inputs["review"].features["attention_mask"]
            for batches, _ in BatchLoader(store, BatchSampler.from_job(rows, job), job).iter_epoch(0)
            for batch in batches
        ]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _job(reviews: Path, by_length: bool, storage: str) -> Any:
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec

    encoder = {"type": "huggingface", "model": str(MODELS / "minilm"), "train": "frozen"}
    content = {
        "kind": "job",
        "name": "padding",
        "data": {"train": str(reviews), "max_bad_rows": 1.0},
        "inputs": {
            "review": {"type": "text", "column": "Review Text", "max_tokens": 256, "encoder": encoder}
        },
        "fusion": {"type": "concat"},
        "tasks": {"rating": {"type": "classification", "column": "Rating"}},
        "train": {"batch_size": BATCH, "group_by_length": by_length},
        "output": {"storage": storage},
    }
    return validate_spec(content, Job, "job")
