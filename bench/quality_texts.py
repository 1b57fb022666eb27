"""Figures of recipes that write texts: without their inputs, and next to the nearest neighbor of the training rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Trained = dict[str, Any]

_COMPARED_ROWS = 50
"""Rows whose two predictions are compared."""


def without_sensors(metric: str, trained: Trained) -> float:
    """Return a metric on the rows of blind.jsonl, next to the test rows: the same without the inputs in question."""
    from rayfuse.evaluation.evaluate import evaluate_folder

    rows = Path(trained["test"]).with_name("blind.jsonl")
    found = evaluate_folder(Path(trained["run"]) / "model", str(rows), batch_size=32)
    return float(found["metrics"][metric])


def entry_recall(top: int, trained: Trained) -> float:
    """Return the fraction of the test questions whose entry is among the `top` ones that an index of all entries finds."""
    import tempfile

    import rayfuse
    from rayfuse.data.readers import read_rows
    from rayfuse.data.rows import Row

    entries = Path(trained["test"]).with_name("entries.jsonl")
    rows = [row.values for row in read_rows(trained["test"]) if isinstance(row, Row)]
    with tempfile.TemporaryDirectory() as folder:
        rayfuse.build_index(Path(trained["run"]) / "model", entries, f"{folder}/index", verbose=False)
        found = rayfuse.load_index(f"{folder}/index").search_many(
            [row["query"] for row in rows], top, ["faq"]
        )
    right = [
        row["faq"] in [one.values["faq"] for one in passages]
        for row, passages in zip(rows, found, strict=True)
    ]
    return sum(right) / len(right)


def feedback_agreement(verdict: Callable[[float], str], trained: Trained) -> float:
    """Return the fraction of the first 50 test rows whose feedback is the predicted score in words."""
    import rayfuse
    from rayfuse.data.readers import read_rows
    from rayfuse.data.rows import Row

    rows = [row.values for row in read_rows(trained["test"]) if isinstance(row, Row)][:_COMPARED_ROWS]
    inputs = ("question", "reference", "answer")
    found = rayfuse.load_model(Path(trained["run"]) / "model").predict(
        [{name: row[name] for name in inputs} for row in rows]
    )
    outputs = [one["outputs"] for one in found]
    right = [verdict(one["score"]["value"]) == one["feedback"]["text"] for one in outputs]
    return sum(right) / len(right)


def relative_to_blind(trained: Trained) -> float:
    """Return CIDEr-D of captions, relative to that of the same model without the image."""
    evaluation = json.loads((Path(trained["run"]) / "evaluation.json").read_text())
    return float(trained["metrics"]["caption/cider"]) / float(
        evaluation["details"]["caption"]["without_inputs"]["cider"]
    )


def relative_to_neighbor(trained: Trained) -> float:
    """Return CIDEr-D of captions, relative to that of the nearest training image's first caption."""
    return float(trained["metrics"]["caption/cider"]) / neighbor_cider(trained)


def neighbor_cider(trained: Trained) -> float:
    """Return CIDEr-D of the first caption of the training image with the nearest features, by cosine similarity.

    The features are the mean of those of the model's image encoder.
    """
    import numpy as np
    import torch

    from rayfuse.data.collate import collate
    from rayfuse.data.readers import read_rows
    from rayfuse.data.rows import Row
    from rayfuse.model.predictor import Predictor
    from rayfuse.model.tasks.cider import cider_d

    predictor = Predictor(Path(trained["run"]) / "model")
    captions: list[dict[str, list[str]]] = []
    features = []
    for url in (trained["train"], trained["test"]):
        rows = [row for row in read_rows(url) if isinstance(row, Row)]
        by_image: dict[str, list[str]] = {}
        for row in rows:
            by_image.setdefault(row.values["image"], []).append(row.values["caption"])
        first = {row.values["image"]: row for row in reversed(rows)}
        vectors = []
        for image in by_image:
            batch = collate(
                [predictor.preprocessor.from_row(first[image])], predictor.preprocessor.modalities
            )
            with torch.inference_mode():
                tokens, _ = predictor.model.encoders["image"](**batch.inputs["image"].features)
            vectors.append(tokens[0].mean(dim=0).numpy())
        found = np.stack(vectors)
        features.append(found / np.linalg.norm(found, axis=1, keepdims=True))
        captions.append(by_image)
    nearest = (features[1] @ features[0].T).argmax(axis=1)
    known, wanted = (list(part.values()) for part in captions)
    return cider_d([known[place][0] for place in nearest], wanted, [(float(n),) for n in range(len(wanted))])
