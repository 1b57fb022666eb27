"""Options of alignment, fusion and training."""

import math

from rayfuse.presets.facts import Facts
from rayfuse.presets.inputs import Values, choose_dim
from rayfuse.spec.deepspeed import DeepSpeedConfig
from rayfuse.spec.job import Job
from rayfuse.spec.quality import Quality

_PASSES: dict[Quality, int] = {"fast": 30_000, "medium": 150_000, "best": 500_000}
"""Training rows to pass over, counting repeated ones: few rows are repeated more often."""
_EPOCHS: dict[Quality, tuple[int, int]] = {"fast": (4, 25), "medium": (10, 60), "best": (20, 120)}
_TEXT_EPOCHS: dict[Quality, int] = {"fast": 6, "medium": 12, "best": 20}
"""Epochs of n-grams and frozen vectors of texts, with which networks overfit within a few."""
_FEW_TEXT_EPOCHS: dict[Quality, int] = {"fast": 6, "medium": 8, "best": 12}
"""The same for fewer than `_FEW_TEXT_ROWS` rows."""
_FEW_TEXT_ROWS = 5000
_FEW_VALIDATION_ROWS = 200
"""Validation rows below which the last epoch is used: an accuracy of 85% has a standard error of 2.5 points then."""
_ADAPTED_EPOCHS: dict[Quality, int] = {"fast": 6, "medium": 15, "best": 30}
"""Epochs at most with a pretrained encoder that is trained, which needs few and has slow ones."""
_TIME_BUDGET: dict[Quality, str] = {"fast": "2m", "medium": "20m", "best": "2h"}
_HEADS = 4
_MEDIA = ("image", "audio", "video")


def choose_fusion(job: Job, facts: Facts) -> Values:
    """Return the fusion for the inputs of a job."""
    inputs = job.inputs.values()
    has_media = any(options.type in _MEDIA for options in inputs)
    dim = job.align.dim if "dim" in job.align.model_fields_set else choose_dim(job)
    if len(inputs) > 2 and has_media and dim % _HEADS == 0:
        return {"type": "transformer", "layers": 2, "heads": _HEADS, "dropout": 0.0}
    is_gated = has_media and len(inputs) > 1 and any(options.optional for options in inputs)
    fusion: Values = {"type": "gated" if is_gated else "concat"}
    if _reads_few_texts(job, facts):
        fusion |= {"hidden": 128, "layers": 1, "dropout": 0.5}
    return fusion


def _is_plain(job: Job) -> bool:
    """Return whether all inputs are texts, table columns and items, none of which is augmented."""
    return all(options.type in ("text", "tabular", "item_sequence") for options in job.inputs.values())


def _reads_text(job: Job) -> bool:
    """Return whether the inputs are texts, possibly with table columns and items."""
    return _is_plain(job) and any(options.type == "text" for options in job.inputs.values())


def _reads_few_texts(job: Job, facts: Facts) -> bool:
    return _reads_text(job) and facts.rows < _FEW_TEXT_ROWS


def choose_align(job: Job) -> Values:
    """Return the alignment of all inputs."""
    return {"type": "linear", "dim": choose_dim(job)}


def choose_train(job: Job, quality: Quality, facts: Facts, trains_pretrained: bool) -> Values:
    """Return the training options; `trains_pretrained`: a pretrained encoder is trained."""
    epochs = _choose_epochs(job, quality, facts, trains_pretrained)
    batch_size = max(_batch_size(job, facts), job.compute.max_workers * job.train.gradient_accumulation_steps)
    steps = epochs * math.ceil(facts.rows / batch_size)
    chosen: Values = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": {
            "type": "adamw",
            "lr": 1.0e-3,
            "weight_decay": 0.05 if facts.rows < 3000 else 0.01,
        },
        "schedule": {"type": "cosine", "warmup": 0.1},
        "time_budget": _TIME_BUDGET[quality],
    }
    if not _selects_epochs(job, facts):
        chosen["load_best_model_at_end"] = False
    else:
        chosen["early_stopping"] = {"metric": job.selection_metric, "patience": max(5, epochs // 3)}
    if isinstance(job.train.deepspeed, DeepSpeedConfig) and job.train.deepspeed.stage < 3:
        chosen["ema"] = {"decay": 0.98 if steps < 1000 else 0.99 if steps < 20_000 else 0.999}
    if quality == "best" and _selects_epochs(job, facts):
        chosen["model_soup"] = 5
    if not job.compute.gpus_per_worker and not trains_pretrained:
        chosen["precision"] = "fp32"
    return {**chosen, **_choose_subsets(job, quality)}


def _selects_epochs(job: Job, facts: Facts) -> bool:
    """Return whether validation rows select the epoch: unless the spec decides it, if they are enough, or in a file."""
    if "load_best_model_at_end" in job.train.model_fields_set:
        return job.train.load_best_model_at_end
    fractions = job.data.fractions
    if job.train.early_stopping or job.train.model_soup or "validation" not in fractions:
        return True
    rows = facts.rows / (1 - sum(fractions.values()))
    return rows * fractions["validation"] >= _FEW_VALIDATION_ROWS


def _batch_size(job: Job, facts: Facts) -> int:
    """Return the rows per step: few of media and series, whose augmented copies differ, if there are few rows."""
    if facts.rows >= 3000:
        return 64
    return 32 if facts.rows >= 500 or (_is_plain(job) and facts.rows >= 200) else 8


def _choose_epochs(job: Job, quality: Quality, facts: Facts, trains_pretrained: bool) -> int:
    if _reads_text(job) and not trains_pretrained:
        return (_FEW_TEXT_EPOCHS if facts.rows < _FEW_TEXT_ROWS else _TEXT_EPOCHS)[quality]
    lowest, highest = _EPOCHS[quality]
    epochs = min(highest, max(lowest, round(_PASSES[quality] / facts.rows)))
    return min(epochs, _ADAPTED_EPOCHS[quality]) if trains_pretrained else epochs


def _choose_subsets(job: Job, quality: Quality) -> Values:
    """Return how to train for rows without some of their inputs."""
    optional = [options for options in job.inputs.values() if options.optional]
    if len(job.inputs) < 2 or not optional:
        return {}
    if quality == "fast":
        return {"modality_dropout": 0.2}
    if len(job.inputs) == 2:
        return {"subset_loss": {"sampling": "single"}}
    return {"subset_loss": {"sampling": "random", "weight": 0.3}}
