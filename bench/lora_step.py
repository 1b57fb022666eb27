"""Rate of LoRA training of a language model compared with transformers' Trainer, on the same rows and tokens.

The sides alternate inside one Ray Train worker, as in throughput.py. One job has short prompts and long replies, with
SmolLM2-135M-Instruct. In the other, replies are about a quarter of the tokens and the vocabulary is that of Gemma 3: the
sizes of Gemma-3-270M with random weights. Trainer computes the logits of all positions, Rayfuse those of replies.

MODELS is the folder that contains smollm2-135m-instruct, SHARED the one with data/tabular_text, LORA_ROUNDS the number of
turns of each side.
"""

import csv
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from throughput import LORA, ROOT, SHARED, Turns, in_worker, job_and_rows, take_turns_with_trainer, worker

MODELS = Path(os.environ.get("MODELS", ROOT / "models"))
ROUNDS = int(os.environ.get("LORA_ROUNDS", "3"))
REVIEWS = SHARED / "data" / "tabular_text" / "womens_clothing_reviews_1000.csv"
ROWS, BATCH = 48, 8
GEMMA = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 2048,
}
"""Sizes of Gemma-3-270M."""
REPLY_SHARES = {"long replies": 0.75, "short replies": 0.25}
"""Fraction of the words of a review that are its reply, the last ones; those before are the prompt."""
LIMITS = {"long replies": 1.0, "short replies": 1.3}


def run() -> None:
    """Print the tokens per second of both sides and their ratios."""
    smollm = MODELS / "smollm2-135m-instruct"
    missing = next((path for path in (smollm, REVIEWS) if not path.exists()), None)
    if missing:
        print(
            f"lora        {missing} is missing, so LoRA is not compared with Trainer; set MODELS and SHARED"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        gemma = _write_gemma(Path(folder, "gemma"), smollm)
        for name, model in {"long replies": smollm, "short replies": gemma}.items():
            job, rows = _load(Path(folder, name.replace(" ", "_")), model, REPLY_SHARES[name])
            _print(name, in_worker(_measure, job, rows))


def _print(name: str, found: dict[str, Any]) -> None:
    turns: Turns = found["turns"]
    tokens, share = found["tokens"], found["reply_tokens"] / found["tokens"]
    for side, taken in turns.items():
        rate = statistics.median(tokens / clock for clock, _ in taken)
        line = f"lora        {name:<13} {side:<8} {rate:7.1f} tokens/s, {share:.0%} of them in replies"
        if side == "rayfuse":
            clock, processor = (
                statistics.median(b[kind] / a[kind] for a, b in zip(taken, turns["Trainer"], strict=True))
                for kind in (0, 1)
            )
            line += (
                f"   {clock:.3f} of Trainer's ({processor:.3f} by processor seconds), at least {LIMITS[name]}"
            )
        print(line)


def _write_gemma(folder: Path, tokenizer: Path) -> Path:
    from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)).save_pretrained(folder)
    return folder


def _load(folder: Path, model: Path, share: float) -> tuple[Any, list[Any]]:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import load_spec

    folder.mkdir()
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        reviews = [row["Review Text"].split() for row in csv.DictReader(file) if row["Review Text"]]
    lines = []
    for words in reviews[: 2 * ROWS]:
        start = round(len(words) * (1 - share))
        lines.append(json.dumps({"prompt": " ".join(words[:start]), "reply": " ".join(words[start:])}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    task = {"type": "generation", "column": "reply", "model": str(model), "train": "lora", "lora": LORA}
    content = {
        "kind": "job",
        "name": "reviews",
        "data": {"train": "rows.jsonl", "max_bad_rows": 0.1},
        "inputs": {"prompt": {"type": "text", "max_tokens": 128, "encoder": {"type": "prompt"}}},
        "fusion": {"type": "soft_tokens"},
        "tasks": {"answer": {**task, "max_tokens": 256, "metrics": []}},
        "train": {"batch_size": BATCH},
        "compute": {"workers": 1, "cpus_per_worker": os.cpu_count()},
        "output": {"storage": "unused"},
    }
    path = folder / "job.json"
    path.write_text(json.dumps(content))
    job, dataset = load_dataset(load_spec(path, Job))
    return job, dataset.splits["train"][:ROWS]


def _measure(config: dict[str, Any]) -> dict[str, Any]:
    from rayfuse.model.fused import task_heads

    job, rows = job_and_rows(config)
    mine = worker(job, rows, stage=0)
    renderer: Any = task_heads(mine.engine.module)["answer"].renderer
    items = []
    for row in rows:
        [prompt] = renderer.render({"prompt": row.values["prompt"]}, set())
        reply = renderer.reply_ids(row.values["reply"])
        labels = [-100] * len(prompt) + reply
        items.append({"input_ids": [*prompt, *reply], "attention_mask": [1] * len(labels), "labels": labels})
    turns = take_turns_with_trainer(
        lambda folder, callback: _trainer(job, items, mine.precision, folder, callback), mine, ROUNDS
    )
    return {
        "turns": turns,
        "tokens": sum(len(item["input_ids"]) for item in items),
        "reply_tokens": sum(label != -100 for item in items for label in item["labels"]),
    }


def _trainer(job: Any, items: list[Any], precision: str, folder: str, callback: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    model = job.tasks["answer"].model
    tokenizer = AutoTokenizer.from_pretrained(model)
    lora = LoraConfig(
        r=LORA["r"], lora_alpha=LORA["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    options = TrainingArguments(
        folder,
        num_train_epochs=ROUNDS + 1,
        per_device_train_batch_size=job.train.batch_size,
        learning_rate=job.train.optimizer.lr,
        use_cpu=True,
        bf16=precision == "bf16",
        save_strategy="no",
        disable_tqdm=True,
    )
    whole = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    return Trainer(
        get_peft_model(whole, lora),
        options,
        train_dataset=items,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[callback],
    )
