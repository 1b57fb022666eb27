"""Error messages for invalid specs, as `path: value, rule, remedy`."""

import difflib
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, Tag, ValidationError

from rayfuse.formatting import truncated_repr
from rayfuse.spec.family import PartOf

PLANNED_TYPES = {
    "generation",
    "hyperband", "median", "pbt", "pb2",
}  # fmt: skip
"""Types of the design that are not implemented yet."""

RENAMED_KEYS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "data": {"cache": "feature_cache"},
    "inputs": {
        "mels": "n_mels",
        "track_of": "audio_of",
        "frames": "num_frames",
        "length": "max_length",
        "min_count": "min_frequency",
    },
    "augment": {
        "probability": "p",
        "rotate": "degrees",
        "shift": "translate",
        "knots": "control_points",
        "area": "scale",
        "count": "num_masks",
        "decibels": "max_gain_db",
        "bands": "freq_mask_ratio",
        "frames": "time_mask_ratio",
        "share": ("drop_prob", "swap_prob", "time_mask_ratio", "max_shift"),
    },
    "encoder": {"width": "hidden_size", "blocks": "depths", "patch": "patch_size"},
    "encoder.lora, ia3, oft": {
        "alpha": "lora_alpha",
        "dropout": ("lora_dropout", "module_dropout"),
        "targets": "target_modules",
        "dora": "use_dora",
        "rslora": "use_rslora",
        "init": "init_lora_weights",
        "init_rows": "init_samples",
        "layers": "last_n_layers",
        "feedforward": "feedforward_modules",
        "block_size": "oft_block_size",
    },
    "align": {"queries": "num_queries"},
    "fusion": {"kernel": "kernel_size", "tokens": "num_tokens", "condition": "conditioned_on"},
    "tasks": {
        "focal": "focal_gamma",
        "bank": "csls_bank",
        "hardness": "hard_negative_beta",
        "group": "query_column",
        "depth": "ndcg_at",
        "deviation": "std",
        "reports": "metrics",
    },
    "train": {
        "accumulate": "gradient_accumulation_steps",
        "clip": "max_grad_norm",
        "groups": "param_groups",
        "input_dropout": "modality_dropout",
        "soup": "model_soup",
        "distill": "distillation",
        "guard": "loss_guard",
    },
    "train.subset_loss": {"draw": "sampling"},
    "train.param_groups": {"match": "pattern"},
    "train.loss_guard": {
        "spike": "spike_factor",
        "skip": "skip_batches",
        "most": "max_rollbacks",
    },
    "train.checkpoint": {"every": "interval", "steps": "every_n_steps"},
    "train.optimizer": {"clip": "clip_threshold"},
    "train.schedule": {"min": "min_lr_ratio", "decay": "decay_ratio", "form": "decay_shape"},
    "compute": {
        "data_processes": "data_workers",
        "prefetch": "prefetch_steps",
        "keep_samples": "sample_cache",
    },
    "output": {"model": "registered_model", "tracking": "tracking_uri"},
    "sweep": {"trial": "trial_overrides", "budget": "time_budget"},
    "sweep.search": {"startup": "n_startup_trials"},
    "sweep.scheduler": {"grace": "grace_period", "reduction": "reduction_factor"},
    "service": {"tracking": "tracking_uri"},
    "service.replicas": {
        "target_ongoing": "target_ongoing_requests",
        "cpus": "num_cpus",
        "gpus": "num_gpus",
    },
    "service.batching": {"max_size": "max_batch_size", "wait": "batch_wait_timeout"},
    "service.limits": {"body": "max_body_size", "queue": "max_queued_requests", "timeout": "request_timeout"},
    "cluster": {"queue": "kueue_queue", "pull_secrets": "image_pull_secrets"},
    "cluster.volumes": {"claim": "pvc"},
    "cluster.submission": {"deadline": "active_deadline", "retries": "backoff_limit"},
}
"""Keys of earlier versions → today's, by section. Used where a block has no old key but has the new one."""

RENAMED_TYPES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "inputs": {"series": "timeseries", "table": "tabular", "sequence": "item_sequence"},
    "augment": {
        "flip": "horizontal_flip",
        "crop": "resized_crop",
        "erase": "erasing",
        "color": "color_jitter",
        "noise": "gaussian_noise",
        "mask": ("spec_augment", "time_mask"),
        "drop": "token_dropout",
        "swap": "token_swap",
        "warp": "time_warp",
    },
}
"""Values of `type` of earlier versions → today's, by section."""

_PYDANTIC_BOILERPLATE = re.compile(
    r"^(Input|String|List|Tuple|Dictionary|Value) (?=should)"
    r"| after validation, not \d+$"
    r"|, (unable to parse|got a number with) .*"
)
"""Parts of pydantic's messages in addition to the rule."""

_REDACTED_ERROR_TYPES = ("not_built", "credentials", "invalid_key")
"""Types of errors whose message must not contain the value."""


def format_errors(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Return a line `path: message` per problem, in the order of the spec's fields."""
    return [f"{path}: {message}" for path, message in locate_errors(error, kind)]


def locate_errors(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, str]]:
    """Return (path, message) per problem, in the order of the spec's fields, without duplicates."""
    found = (_locate(dict(problem), kind) for problem in error.errors(include_url=False))
    return list(dict.fromkeys(found))


def _locate(problem: dict[str, Any], kind: type[BaseModel]) -> tuple[str, str]:
    path, owner, node = _walk(problem["loc"], kind)
    context = problem.get("ctx", {})
    if "path" in context:
        path = [*path, context["path"]]
    return ".".join(path) or "(top level)", _message(problem, owner, node)


def _message(problem: dict[str, Any], owner: Any, node: Any) -> str:
    kind, context, value = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(str(problem["loc"][-1]), owner)
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found" and isinstance(value, dict):
        return f"`type` is missing; one of: {', '.join(_tags(node))}"
    if kind == "union_tag_invalid":
        return _unknown_type(str(context.get("tag")), _tags(node))
    if kind == "literal_error":
        return f"{truncated_repr(value)} is not one of: {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{truncated_repr(value)} does not match {context['pattern']}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        message = "must be a mapping"
    elif kind == "invalid_key":
        message = "a key must be text; put it in quotes"
    else:
        message = _PYDANTIC_BOILERPLATE.sub("", problem["msg"])
    if "path" in context or kind in _REDACTED_ERROR_TYPES or _holds_secret(node):
        return message
    return (
        f"{truncated_repr(value)} is {message}"
        if message.startswith("not a")
        else f"{message}, not {truncated_repr(value)}"
    )


def _unknown_key(key: str, owner: Any) -> str:
    models = [member for member in _members(owner) if not isinstance(member, PartOf)]
    known = [name for model in models for name in model.model_fields]
    renamed = _renamed(key, known, RENAMED_KEYS)
    return f"unknown key; {f'did you mean {renamed}?' if renamed else suggest_nearest(key, known)}"


def _unknown_type(given: str, known: list[str]) -> str:
    if given in PLANNED_TYPES:
        return f"type `{given}` is not implemented yet; one of: {', '.join(known)}"
    if not known:
        return f"unknown type `{given}`; write the import path of a class, MODULE:CLASS"
    renamed = _renamed(given, known, RENAMED_TYPES)
    return (
        f"unknown type `{given}`; {f'did you mean {renamed}?' if renamed else suggest_nearest(given, known)}"
    )


def _renamed(
    given: str, known: list[str], tables: Mapping[str, Mapping[str, str | tuple[str, ...]]]
) -> str | None:
    """Return today's name of an earlier one, if it is among the known names."""
    for table in tables.values():
        new = table.get(given, ())
        for name in (new,) if isinstance(new, str) else new:
            if name in known:
                return name
    return None


def suggest_nearest(given: str, known: list[str]) -> str:
    """Return `did you mean …?` with the known name most similar to a given one, else a list of all."""
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(known)}"


def _walk(loc: tuple[int | str, ...], kind: type[BaseModel]) -> tuple[list[str], Any, Any]:
    """Return the path as the user wrote it, the type that owns its last key, and the type found there.

    A pydantic location also names the selected member of every union on the way, and `[key]`.
    """
    path: list[str] = []
    owner: Any = None
    node: Any = kind
    for key in loc:
        member = _member(node, key)
        if member is not None:
            node = member
        elif key != "[key]":
            path.append(str(key))
            owner, node = node, _child_type(node, key)
    return path, owner, node


def _unwrap(node: Any) -> Any:
    """Return a type without its annotations; for a part of a family, its PartOf."""
    while get_origin(node) is Annotated:
        node, *metadata = get_args(node)
        node = _part_of(metadata) or node
    return node


def _part_of(metadata: Any) -> PartOf | None:
    return next((mark for mark in metadata if isinstance(mark, PartOf)), None)


def _holds_secret(node: Any) -> bool:
    """Return whether a type is or contains a secret, so that an invalid value may be one."""
    plain = _unwrap(node)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return any(_holds_secret(field.annotation) for field in plain.model_fields.values())
    return plain is SecretStr or any(_holds_secret(inner) for inner in get_args(plain))


def _is_union(node: Any) -> bool:
    return get_origin(_unwrap(node)) in (Union, UnionType)


def _members(node: Any) -> Iterator[Any]:
    """Yield the members of a union and of those within it: spec models and PartOfs."""
    node = _unwrap(node)
    candidates = get_args(node) if _is_union(node) else (node,)
    for candidate in map(_unwrap, candidates):
        if _is_union(candidate):
            yield from _members(candidate)
        elif isinstance(candidate, PartOf) or (
            isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ):
            yield candidate


def _tag(model: Any) -> str | None:
    field = None if isinstance(model, PartOf) else model.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def _tags(node: Any) -> list[str]:
    if isinstance(part := _unwrap(node), PartOf):
        return part.types
    found: list[str] = []
    for model in _members(node) if _is_union(node) else ():
        found += model.types if isinstance(model, PartOf) else filter(None, [_tag(model)])
    return found


def _member(node: Any, key: int | str) -> Any:
    """Return the member of a union that a location names by its `type`, or as `mapping`, `url` or `custom`."""
    if isinstance(part := _unwrap(node), PartOf):
        return part.family.custom if key == "custom" else part.family.get(str(key))
    if not _is_union(node):
        return None
    if key == "url":
        return str
    for model in _members(node):
        if isinstance(model, PartOf):
            if (found := _member(model, key)) is not None:
                return found
        elif key in (_tag(model), "mapping"):
            return model
    return _tagged(node, key)


def _tagged(node: Any, key: int | str) -> Any:
    """Return the member of a union, or of one within it, with the tag `key`, if it is not a spec model."""
    for candidate in get_args(_unwrap(node)):
        if any(isinstance(mark, Tag) and mark.tag == key for mark in getattr(candidate, "__metadata__", ())):
            return candidate
        if _is_union(candidate) and (found := _tagged(candidate, key)):
            return found
    return None


def _child_type(node: Any, key: int | str) -> Any:
    """Return the type found below `key`, or None if the type has no such key."""
    plain = _unwrap(node)
    if get_origin(plain) in (dict, list, tuple):
        return get_args(plain)[-1]
    if isinstance(plain, type) and issubclass(plain, BaseModel) and isinstance(key, str):
        field = plain.model_fields.get(key)
        return (_part_of(field.metadata) or field.annotation) if field else None
    return None
