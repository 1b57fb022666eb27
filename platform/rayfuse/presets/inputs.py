"""Options of each type of input: sizes, encoders and augmentation."""

import math
from collections.abc import Callable
from typing import Any

from rayfuse.presets.facts import Facts, InputFacts
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.job import Job
from rayfuse.spec.quality import Quality

Values = dict[str, Any]
"""Values of a spec, as in its YAML."""

_SMALL_IMAGE = 40
"""Side in pixels up to which an image shows a single shape, such as a digit, whose mirror image is another one."""
_IMAGE_SIZES: dict[Quality, int] = {"fast": 48, "medium": 64, "best": 128}
_MAX_BYTES: dict[Quality, int] = {"fast": 256, "medium": 512, "best": 1024}
_MAX_WORDS: dict[Quality, int] = {"fast": 256, "medium": 512, "best": 1024}
_CHARACTERS_PER_WORD = 3  # below the average, so that few texts are cut
_MAX_TOKENS = 256
_CHARACTERS_PER_TOKEN = 4
_DEFAULT_CHARACTERS = 500.0
_MAX_CHARACTERS = 640.0
"""Length of texts above which n-grams are chosen: one vector of a sentence encoder is about a paragraph."""
_ADAPTED_TOKENS: dict[Quality, int] = {"fast": 0, "medium": 60_000, "best": 1_000_000}
"""Tokens per epoch, of all texts, up to which a pretrained encoder is adapted on CPUs; with more of them it stays frozen."""
_ADAPTED_SECONDS: dict[Quality, int] = {"fast": 0, "medium": 3_000, "best": 50_000}
"""The same for seconds of audio."""
_FEW_ROWS = 5000
"""Rows below which n-grams complement a frozen encoder, and networks over them overfit."""
_FROZEN_TOKENS: dict[Quality, int] = {"fast": 100_000, "medium": 1_000_000, "best": 5_000_000}
"""Tokens of all rows up to which a frozen encoder runs next to n-grams on CPUs: once for each text."""
_MAX_POSITIONS = 512
"""Tokens that pretrained encoders of texts read."""
_NGRAM_CHARACTERS = [3, 5]
"""N-grams of characters, with which inflections of a word that is rare in few rows have parts in common."""
_FEW_TEXTS = 64
"""Distinct texts in the sample up to which they are a choice of phrases, which need no pretrained encoder."""


def choose_input(job: Job, name: str, quality: Quality, facts: Facts) -> Values:
    """Return the options of an input."""
    options = job.inputs[name]
    choose = _CHOICES.get(options.type)
    return choose(job, options, quality, facts, facts.of(name)) if choose else {}


def _image(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    size = min(_IMAGE_SIZES[quality], max(8, round(found.length or _IMAGE_SIZES[quality])))
    size = _given(options, "size", size)
    chosen: Values = {"size": size}
    model = _model(options, facts)
    if model is not None and size > _SMALL_IMAGE:
        train = "frozen" if quality == "fast" or not job.compute.gpus_per_worker else "lora"
        encoder = {"type": "huggingface", "model": model, "train": train}
        return {**chosen, "encoder": encoder, **_standardized(job)}
    if size <= _SMALL_IMAGE:
        chosen["encoder"] = {"type": "conv", "hidden_size": 16 if facts.rows < 2000 else 32, "dropout": 0.3}
    else:
        depths = [2, 2, 2, 2] if quality == "best" else [1, 1, 1, 1]
        chosen["encoder"] = {"type": "resnet", "hidden_size": 16, "depths": depths, "dropout": 0.2}
    return {**chosen, "augment": _image_augment(size)}


def _image_augment(size: int) -> list[Values]:
    if size <= _SMALL_IMAGE:
        affine = {"type": "affine", "degrees": 15, "translate": 0.1, "scale": [0.85, 1.15], "shear": 10}
        return [affine, {"type": "elastic", "strength": 0.06}]
    affine = {"type": "affine", "degrees": 10, "translate": 0.1, "scale": [0.8, 1.2]}
    return [affine, {"type": "horizontal_flip"}, {"type": "color_jitter"}]


def _audio(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    seconds = _given(options, "max_seconds", _round_up(found.length or 10.0))
    shift = {"type": "shift", "max_shift": 0.1}
    chosen: Values = {"max_seconds": seconds}
    model = _model(options, facts)
    if model is not None and seconds > 1:
        adapted = facts.rows * seconds <= _ADAPTED_SECONDS[quality] or job.compute.gpus_per_worker
        encoder = _pretrained_audio(model, bool(adapted))
        augment = {"augment": [shift]} if adapted else {}
        return {**chosen, "sample_rate": 16000, "encoder": encoder, **augment, **_standardized(job)}
    rate = min(16000, found.sample_rate or 16000)
    masks = {"type": "spec_augment", "freq_mask_ratio": 0.15, "time_mask_ratio": 0.15}
    noise = [{"type": "gaussian_noise", "sigma": [0, 4], "p": 0.5}] if _is_droppable(job, options) else []
    encoder = {"type": "conv", "hidden_size": 16 if facts.rows < 10_000 else 32, "dropout": 0.3}
    return {**chosen, "sample_rate": rate, "encoder": encoder, "augment": [shift, masks, *noise]}


def _pretrained_audio(model: str, adapted: bool) -> Values:
    encoder: Values = {"type": "huggingface", "model": model, "hidden_states": [0, 1, 2, 3, -1]}
    if not adapted:
        return {**encoder, "train": "frozen"}
    return {**encoder, "train": "lora", "lora": {"r": 8, "lora_alpha": 16, "last_n_layers": 1}, "lr": 1.0e-4}


def _given(options: BaseInput, key: str, chosen: Any) -> Any:
    """Return the value that the spec sets, else the chosen one."""
    return getattr(options, key) if key in options.model_fields_set else chosen


def _is_droppable(job: Job, options: BaseInput) -> bool:
    """Return whether the model predicts without this input as well, from others."""
    return options.optional and len(job.inputs) > 1


def _text(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    length = found.length or _DEFAULT_CHARACTERS
    model = _model(options, facts)
    is_free = "encoder" not in options.model_fields_set
    if not is_free and options.encoder.type not in ("ngrams", "huggingface"):
        return {"max_tokens": min(_MAX_BYTES[quality], max(16, math.ceil(length / 16) * 16))}
    is_adapted = _is_adapted(job, quality, facts)
    is_beside = facts.rows < _FEW_ROWS and not is_adapted
    if model is None or _is_choice(found, facts) or (is_free and (is_beside or length > _MAX_CHARACTERS)):
        return _ngrams(length, quality, facts, found, model if is_beside else None)
    chosen: Values = {"max_tokens": _num_tokens(options, found)}
    encoder: Values = {"type": "huggingface", "model": model, "train": "frozen"}
    if not is_adapted:
        return {**chosen, "encoder": encoder, **_standardized(job)}
    return {
        **chosen,
        "encoder": {**encoder, "train": "lora", "lora": {"r": 8, "lora_alpha": 16}, "lr": 5.0e-4},
    }


def _ngrams(length: float, quality: Quality, facts: Facts, found: InputFacts, model: str | None) -> Values:
    """Return the options of a text of some length in characters that is read as n-grams, next to a frozen model if it pays."""
    words = min(_MAX_WORDS[quality], max(16, math.ceil(length / _CHARACTERS_PER_WORD / 16) * 16))
    encoder: Values = {"type": "ngrams", "hidden_size": 128, "words": 2}
    if _is_choice(found, facts):
        encoder["dropout"] = 0.1
    elif facts.rows < _FEW_ROWS:
        encoder |= {"hidden_size": 32, "characters": _NGRAM_CHARACTERS, "dropout": 0.5}
        if model is not None and words <= _MAX_POSITIONS and facts.rows * words <= _FROZEN_TOKENS[quality]:
            encoder["pretrained"] = {"type": "huggingface", "model": model, "train": "frozen"}
    else:
        encoder["dropout"] = 0.2
    return {"max_tokens": words, "encoder": encoder}


def _is_adapted(job: Job, quality: Quality, facts: Facts) -> bool:
    """Return whether pretrained encoders of texts are adapted, which takes long on CPUs."""
    total = sum(_num_tokens(one, facts.of(name)) for name, one in job.inputs.items() if one.type == "text")
    return facts.rows * total <= _ADAPTED_TOKENS[quality] or bool(job.compute.gpus_per_worker)


def _is_choice(found: InputFacts, facts: Facts) -> bool:
    """Return whether the texts are a few phrases that occur again and again."""
    return found.distinct is not None and found.distinct <= _FEW_TEXTS < facts.rows


def _num_tokens(options: BaseInput, found: InputFacts) -> int:
    """Return the tokens of a text that are read, at most as many as the spec sets."""
    length = found.length or _DEFAULT_CHARACTERS
    tokens = min(_MAX_TOKENS, max(16, math.ceil(length / _CHARACTERS_PER_TOKEN / 16) * 16))
    return int(min(tokens, _given(options, "max_tokens", tokens)))


def _model(options: BaseInput, facts: Facts) -> str | None:
    """Return the pretrained model for an input: that of the spec, else one on this machine; None for no such encoder."""
    if "encoder" not in options.model_fields_set:
        return facts.pretrained.get(options.type)
    return options.encoder.model if isinstance(options.encoder, HuggingFaceEncoderConfig) else None


def _standardized(job: Job) -> Values:
    """Return the alignment of pretrained vectors, which often have a large mean in common."""
    dim = job.align.dim if "dim" in job.align.model_fields_set else choose_dim(job)
    return {"align": {"type": "linear", "dim": dim, "standardize": True, "dropout": 0.1}}


def choose_dim(job: Job) -> int:
    """Return the common width of the inputs."""
    return (
        128 if len(job.inputs) > 2 or any(i.type in ("text", "tabular") for i in job.inputs.values()) else 64
    )


def _timeseries(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    steps = found.length or 100.0
    stride = max(1, round(steps / 500))
    encoder = {"type": "conv", "hidden_size": 64, "layers": 4 if steps <= 200 else 6, "dropout": 0.1}
    noise = {"type": "gaussian_noise", "sigma": [0, 0.1]}
    return {
        "encoder": encoder if stride == 1 else {**encoder, "stride": stride},
        "augment": [{"type": "scale", "sigma": 0.1}, noise],
    }


def _tabular(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    hidden = 64 if facts.rows < 5000 else 128 if facts.rows < 50_000 else 256
    return {"encoder": {"type": "mlp", "hidden_size": hidden, "layers": 2, "dropout": 0.2}}


def _video(job: Job, options: BaseInput, quality: Quality, facts: Facts, found: InputFacts) -> Values:
    image = {"type": "conv", "hidden_size": 16, "dropout": 0.2}
    frames = {"fast": 4, "medium": 6, "best": 8}[quality]
    encoder = {"type": "frames", "encoder": image, "pool": "transformer"}
    return {"num_frames": frames, "size": _IMAGE_SIZES["medium"], "encoder": encoder}


def _round_up(seconds: float) -> float:
    """Return a length of audio that does not depend on small differences between files."""
    unit = 0.1 if seconds < 2 else 0.5
    return min(30.0, round(math.ceil(seconds / unit - 0.1) * unit, 1))


_CHOICES: dict[str, Callable[[Job, BaseInput, Quality, Facts, InputFacts], Values]] = {
    "image": _image,
    "audio": _audio,
    "text": _text,
    "timeseries": _timeseries,
    "tabular": _tabular,
    "video": _video,
}
"""Options by type of input; other types keep their defaults."""
