"""A retrieval model with a real sentence encoder, and passages that it finds."""

from pathlib import Path

import rayfuse
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import save_model
from rayfuse.presets.pretrained import find_pretrained

PASSAGES = [
    {"id": 1, "text": "A fee is charged when you withdraw money abroad.", "link": "a"},
    {"id": 2, "text": "Your card arrives within five working days.", "link": "b"},
    {"id": 3, "text": "Reset the PIN in the app under Cards.", "link": None},
    {"id": 4, "text": "Exchange rates are those of the card network.", "link": "d"},
]


def make_retriever(folder: Path) -> Path:
    """Write FOLDER/model, which embeds questions and texts alike, and return it."""
    encoder = {"type": "huggingface", "model": find_pretrained({})["text"], "train": "frozen"}
    side = {"type": "text", "max_tokens": 32, "encoder": encoder}
    find = {"type": "retrieval", "inputs": ["question", "text"], "dim": 384, "projection": "none"}
    job = rayfuse.Job(
        name="faq",
        data={"train": "none.jsonl"},
        inputs={"question": side, "text": side},
        align={"type": "identity", "dim": 384},
        fusion={"type": "sum"},
        tasks={"find": find},
    )
    save_model(folder / "model", job, trainable_state_dict(FusedModel(job)), {})
    return folder / "model"
