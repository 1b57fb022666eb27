"""Share of tokens that are padding in an epoch of real reviews, with batches by length and without."""

import tempfile
from pathlib import Path
from typing import Any

from throughput import SHARED

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
LIMIT = 0.10
BATCH = 32


def run() -> None:
    """Print the share for both; needs the reviews of $SHARED/data/tabular_text and the tokenizer of models/minilm."""
    reviews = SHARED / "data" / "tabular_text" / "womens_clothing_reviews_1000.csv"
    if not reviews.is_file() or not (MODELS / "minilm").is_dir():
        print(f"padding     skipped: it takes {reviews} and {MODELS / 'minilm'}; set SHARED")
        return
    shares = {by_length: _share(reviews, by_length) for by_length in (False, True)}
    print(f"padding     in the order of the seed     {shares[False]:6.1%} of tokens")
    print(f"padding     train.group_by_length: true  {shares[True]:6.1%} of tokens   at most {LIMIT:.0%}")


def _share(reviews: Path, by_length: bool) -> float:
    from rayfuse.data.ahead import Loader
    from rayfuse.data.batches import Plan, SampleStore
    from rayfuse.data.dataset import load_dataset
    from rayfuse.data.samples import SampleMaker

    with tempfile.TemporaryDirectory() as storage:
        job, dataset = load_dataset(_job(reviews, by_length, storage))
        rows = dataset.splits["train"]
        store = SampleStore(rows, SampleMaker(job.inputs, job.tasks))
        masks = [
            batch.inputs["review"].features["attention_mask"]
            for batches, _ in Loader(store, Plan.of(rows, job), job).steps(0)
            for batch in batches
        ]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _job(reviews: Path, by_length: bool, storage: str) -> Any:
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import check

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
    return check(content, Job, "job")
