"""Error messages: the path as written, the rule, and the nearest valid value."""

import copy
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.kinds import KINDS, spec_class
from rayfuse.spec.load import validate_spec
from rayfuse.spec.renamed_keys import EQUIVALENT_KEYS, RENAMED_KEYS
from rayfuse.spec.schema import json_schema
from rayfuse.spec.service import Service
from rayfuse.spec.tasks.classification import CLASSIFICATION_METRICS

JOB: dict[str, Any] = {
    "kind": "job",
    "name": "tiny",
    "data": {"train": "/train.jsonl"},
    "inputs": {
        "image": {"type": "image", "encoder": {"type": "conv"}},
        "audio": {"type": "audio", "encoder": {"type": "conv"}, "optional": True},
    },
    "fusion": {"type": "concat"},
    "tasks": {"answer": {"type": "classification", "column": "label"}},
    "output": {"storage": "/runs"},
}
SERVICE: dict[str, Any] = {"kind": "service", "name": "tiny", "model": "models:/tiny@champion"}

LEFT_OUT = object()
REPORTED = ", ".join(["loss", *(f"answer/{metric}" for metric in CLASSIFICATION_METRICS)])


def error_of(spec: dict[str, Any], path: str, value: Any) -> str:
    """Return the error message of a spec with one value replaced."""
    spec = copy.deepcopy(spec)
    node, *keys = spec, *path.split(".")
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    if value is LEFT_OUT:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    with pytest.raises(SpecError) as caught:
        validate_spec(spec, {"job": Job, "service": Service}[spec["kind"]], "jobs/x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inputs.audio.sample_rat", 8000, "inputs.audio.sample_rat: unknown key; did you mean sample_rate?"),
        ("trian", {}, "trian: unknown key; did you mean train?"),
        ("epochs", 3, "epochs: unknown key; did you mean train.epochs?"),
        ("train.lr", 1e-3, "train.lr: unknown key; did you mean train.optimizer.lr?"),
        ("train.num_workers", 2, "train.num_workers: unknown key; did you mean compute.workers?"),
        ("dropout", 0.1, "dropout: unknown key; did you mean align.dropout, fusion.dropout?"),
        ("compute.gpus", 1, "compute.gpus: unknown key; did you mean gpus_per_worker?"),
        ("train.optimizer.learning_rate", 1, "train.optimizer.learning_rate: unknown key; did you mean lr?"),
        ("train.deepspeed.stag", 1, "train.deepspeed.stag: unknown key; did you mean stage?"),
        ("data.validation", {"fractoin": 0.1}, "data.validation.fraction: missing\njobs/x.yaml: data.validation.fractoin: unknown key; did you mean fraction?"),
        ("data.validation", {"fraction": 1.5}, "data.validation.fraction: must be less than 1, not 1.5"),
        ("data.validation", 0.1, "data.validation: must be a mapping, not 0.1"),
        ("data.train", LEFT_OUT, "data.train: missing"),
        ("data.train", "", "data.train: '' is not a table of rows; write the path of a data file, a glob, a folder or a list of these, or in Python pass a DataFrame, an Arrow table, a list of dicts, or a dataset of Ray or Hugging Face"),
        ("name", None, "name: must be a string, not null"),
        ("name", "a/b", "name: 'a/b' is not a name; write letters, digits, `-`, `_` and `.`, with a letter or digit at both ends"),
        ("train.epochs", "many", "train.epochs: must be an integer, not 'many'"),
        ("train.epochs", 1.5, "train.epochs: must be an integer, not 1.5"),
        ("train.optimizer.lr", 0, "train.optimizer.lr: must be greater than 0, not 0"),
        ("train.optimizer.lr", float("nan"), "train.optimizer.lr: must be a finite number, not nan"),
        ("train.precision", "bf61", "train.precision: 'bf61' is not one of: auto, bf16, fp16, fp32"),
        ("train", [], "train: must be a mapping, not []"),
        ("train.group_by_length", "maybe", "train.group_by_length: must be true or false, not 'maybe'"),
        ("output.storage", "s3:/bucket", "output.storage: 's3:/bucket' is not a URL; write s3://…"),
        ("inputs", {}, "inputs: must have at least 1 item, not {}"),
        ("inputs.my-input", {"type": "image", "encoder": {"type": "conv"}}, "inputs.my-input: 'my-input' is not a name; write letters, digits and `_`, without a digit at the start"),
        ("inputs.image", {"encoder": {"type": "conv"}}, "inputs.image: `type` is missing; one of: image, audio, video, text, chat, timeseries, tabular, item_sequence"),
        ("inputs.image.type", "imgae", "inputs.image: unknown type `imgae`; did you mean image?"),
        ("inputs.image.type", "smell", "inputs.image: unknown type `smell`; one of: image, audio, video, text, chat, timeseries, tabular, item_sequence"),
        ("inputs.image.encoder", "conv", "inputs.image.encoder: must be a mapping, not 'conv'; write {type: conv}"),
        ("inputs.image.encoder.hiden_size", 8, "inputs.image.encoder.hiden_size: unknown key; did you mean hidden_size?"),
        ("fusion.type", "gatd", "fusion: unknown type `gatd`; did you mean gated?"),
        ("tasks.answer.type", "median", "tasks.answer: type `median` is not implemented yet; one of: classification, multi_label, ordinal, regression, tagging, matching, retrieval, ranking, generation, preference"),
        ("align.loss", {"type": "contrastiv"}, "align.loss.0: unknown type `contrastiv`; did you mean contrastive?"),
        ("align.loss", [{"type": "margin", "margn": 1}], "align.loss.0.margn: unknown key; did you mean margin?"),
        ("align.loss", [{"type": "margin"}, {"type": "margin"}], "align.loss: `margin` is listed twice; remove one"),
        ("inputs.text", {"type": "text", "encoder": {"type": "huggingface", "model": "./m", "hidden_states": [-1, 2]}}, "inputs.text.encoder.hidden_states: [-1, 2] is not a list of hidden states; list each once, and end with -1, the last"),
        ("inputs.audio.augment", [{"type": "affine"}], "inputs.audio.augment.0: unknown type `affine`; did you mean gain?"),
        ("inputs.audio.augment", [{"type": "shift"}, {"type": "gain"}], "inputs.audio.augment.1: `gain` applies to waveform, and features are `mel`; leave it out"),
        ("inputs.image.augment", [{"type": "affine", "scale": [1.2, 0.8]}], "inputs.image.augment.0.scale: [1.2, 0.8] is not a range; write [LOWEST, HIGHEST], the lower end first"),
        ("train.subset_loss", {"sampling": "some"}, "train.subset_loss.sampling: 'some' is not one of: random, single, each"),
        ("compute.workers", [8, 1], "compute.workers: [8, 1] is not a number of workers; write 4, or [1, 8] for 1 to 8, as many as the cluster has resources for"),
        ("compute.workers", 0, "compute.workers: 0 is not a number of workers; write 4, or [1, 8] for 1 to 8, as many as the cluster has resources for"),
        ("train.optimizer", {"type": "adamax"}, "train.optimizer: unknown type `adamax`; did you mean adamw?"),
        ("train.optimizer", {"type": "sgd", "momentum": 0, "nesterov": True}, "train.optimizer.nesterov: true needs a momentum above 0; set momentum, or leave nesterov out"),
        ("train.optimizer", {"type": "muon"}, "train.optimizer.type: muon orthogonalizes whole matrices, and ZeRO stage 2 shards them; use train.deepspeed.stage 0, or adamw, sgd or lion"),
        ("train", {"optimizer": {"type": "adafactor"}, "deepspeed": {"stage": 1}}, "train.optimizer.type: adafactor scales its steps by rows, columns and the norm of whole weights, and ZeRO stage 1 shards them; use train.deepspeed.stage 0, or adamw, sgd or lion"),
        ("train.param_groups", [{"pattern": "*.bias"}], "train.param_groups.0: changes nothing; set lr, weight_decay, start or end"),
        ("train.param_groups", [{"pattern": "*", "start": 0.5, "end": "20%"}], "train.param_groups.0.end: 0.2 is not after start 0.5; raise it, or lower start"),
        ("train.param_groups", [{"pattern": "*", "start": 1.5}], "train.param_groups.0.start: 1.5 is not a fraction; write an integer for steps, or 0.05 or 5% for a fraction of them"),
        ("train.schedule", {"type": "wds"}, "train.schedule: unknown type `wds`; did you mean wsd?"),
        ("train.schedule", {"warmup": 1.5}, "train.schedule.warmup: 1.5 is not a fraction; write an integer for steps, or 0.05 or 5% for a fraction of them"),
        ("train.schedule", {"warmup": -1}, "train.schedule.warmup: must be at least 0, not -1"),
        ("train.schedule", {"type": "constant", "min_lr_ratio": 0.1}, "train.schedule.min_lr_ratio: unknown key; one of: type, warmup"),
        ("train.schedule", {"type": "wsd", "warmup": 0.6, "decay_ratio": 0.5}, "train.schedule.decay_ratio: 0.5 and warmup 0.6 add up to more than 1; lower one"),
        ("train.deepspeed.offload", "cpu", "train.deepspeed.offload: must be a mapping, not 'cpu'"),
        ("train.deepspeed.offload", {"optimizer": "nvme"}, "train.deepspeed.offload.optimizer: 'nvme' is not one of: cpu"),
        ("train.deepspeed", {"stage": 2, "offload": {"parameters": "cpu"}}, "train.deepspeed.offload.parameters: cpu is not supported by ZeRO stage 2; use stage 3"),
        ("train.deepspeed", {"stage": 0, "offload": {"optimizer": "cpu"}}, "train.deepspeed.offload.optimizer: cpu is not supported by ZeRO stage 0; use stage 1, 2 or 3"),
        ("data.max_bad_rows", "half", "data.max_bad_rows: 'half' is not a fraction; write 0.01 or 1%"),
        ("tasks.answer.classes", ["a"], "tasks.answer.classes: must have at least 2 items, not ['a']"),
        ("tasks.answer.column", "image", "tasks: column `image` is both an input and a target; use another column for one"),
        ("train.batch_size", 0, "train.batch_size: must be at least 1, not 0"),
        ("train.early_stopping", {"metric": "answer/acuracy"}, "train.early_stopping.metric: no task reports `answer/acuracy`; did you mean answer/accuracy?"),
        ("train.early_stopping", {"metric": "f1"}, "train.early_stopping.metric: no task reports `f1`; one of: " + REPORTED),
        ("fusion", {"type": "transformer", "heads": 3}, "fusion.heads: 3 does not divide align.dim 128; use a divisor of 128"),
        ("data.train", [], "data.train: [] is not a table of rows; write the path of a data file, a glob, a folder or a list of these, or in Python pass a DataFrame, an Arrow table, a list of dicts, or a dataset of Ray or Hugging Face"),
        ("data.train", "~nosuchuser/x", "data.train: '~nosuchuser/x' is not a path: Could not determine home directory; write an absolute path or a URL"),
        ("data.train", "a\x1b[2J", "data.train: 'a\\x1b[2J' is not a path: it holds control characters; remove them"),
        ("train.epochs", True, "train.epochs: must be a number, not true"),
        ("train.epochs", "yes", "train.epochs: must be an integer, not 'yes'"),
        ("train.epochs", 10**30, "train.epochs: must have at most 64 bits; use a smaller number"),
        ("train.epochs", "9" * 30, "train.epochs: must have at most 64 bits; use a smaller number"),
        ("train.optimizer.lr", True, "train.optimizer.lr: must be a number, not true"),
        ("train.optimizer.betas", [True, 0.9], "train.optimizer.betas.0: must be a number, not true"),
        ("train.max_grad_norm", False, "train.max_grad_norm: must be a number, not false"),
        ("train.schedule.warmup", True, "train.schedule.warmup: must be a number, not true"),
        ("train.deepspeed.stage", True, "train.deepspeed.stage: must be a number, not true"),
        ("data.max_bad_rows", True, "data.max_bad_rows: must be a number, not true"),
        ("compute.hang_timeout", True, "compute.hang_timeout: must be a number, not true"),
        ("compute.sample_cache", True, "compute.sample_cache: must be a number, not true"),
        ("tasks.answer.class_weights", {"a": True}, "tasks.answer.class_weights.a: must be a number, not true"),
        ("tasks.answer.type", ["a"], "tasks.answer: unknown type `['a']`; one of: classification, multi_label, ordinal, regression, tagging, matching, retrieval, ranking, generation, preference"),
        ("fusion.type", "\x1b[2J", "fusion: unknown type `\\x1b[2J`; one of: concat, concat_conv, sum, weighted, max_pool, gated, attention, mlp, cross_attention, transformer, bottleneck, low_rank, compare, film, hierarchical, soft_tokens, vote, average, learned, stacking"),
        ("x" * 5000, 1, "x" * 119 + "…: unknown key; one of: kind, name, data, inputs, align, fusion, tasks, train, compute, output"),
        ("\x1b[2J", 1, "\\x1b[2J: unknown key; one of: kind, name, data, inputs, align, fusion, tasks, train, compute, output"),
        ("compute.workers", 64, "train.batch_size: 32 is less than compute.workers × train.gradient_accumulation_steps = 64; use 64 or more"),
    ],
)  # fmt: skip
def test_one_error_in_a_job(path: str, value: Any, message: str) -> None:
    assert error_of(JOB, path, value) == f"jobs/x.yaml: {message}"


def test_every_error_has_one_line() -> None:
    spec = copy.deepcopy(JOB)
    spec |= {"trian": {}, "train": {"epochs": 0}, "fusion": {"type": "concat", "hiden": 1}}
    with pytest.raises(SpecError) as caught:
        validate_spec(spec, Job, "jobs/x.yaml")
    assert str(caught.value).splitlines() == [
        "jobs/x.yaml: fusion.hiden: unknown key; did you mean hidden?",
        "jobs/x.yaml: train.epochs: must be at least 1, not 0",
        "jobs/x.yaml: trian: unknown key; did you mean train?",
    ]


def test_many_errors_are_counted() -> None:
    with pytest.raises(SpecError) as caught:
        validate_spec(JOB | {f"unknown_{i}": 1 for i in range(1000)}, Job, "jobs/x.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "jobs/x.yaml: (top level): … and 980 more"


def test_python_values_that_no_file_can_hold() -> None:
    inside: list[Any] = []
    inside.append(inside)
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"options": deep}
    assert "at most 64 bits" in error_of(JOB, "train.epochs", 10**5000)
    for value in (inside, deep, {"a": "\ud800"}, 10**5000):
        for path in ("train", "fusion", "data", "inputs", "name"):
            assert all(line.isprintable() for line in error_of(JOB, path, value).split("\n"))
    with pytest.raises(SpecError, match=r"the character \\ud800 is not allowed|must be a string"):
        validate_spec(JOB | {"train": {"early_stopping": {"metric": "\ud800"}}}, Job, "jobs/x.yaml")


def test_keys_that_are_not_text() -> None:
    with pytest.raises(SpecError, match=r"inputs\.1: "):
        validate_spec(
            JOB | {"inputs": {1: {"type": "image", "encoder": {"type": "conv"}}}}, Job, "jobs/x.yaml"
        )
    with pytest.raises(SpecError, match=r"jobs/x\.yaml: 1: a key must be text; put it in quotes$"):
        validate_spec(JOB | {1: 2}, Job, "jobs/x.yaml")


def test_batches_by_length_need_inputs_of_any_length() -> None:
    text = error_of(JOB, "train.group_by_length", True)
    assert text.startswith("jobs/x.yaml: train.group_by_length: true needs an input of variable length")
    inputs = JOB["inputs"] | {"text": {"type": "text", "encoder": {"type": "conv"}}}
    assert validate_spec(JOB | {"inputs": inputs, "train": {"group_by_length": True}}, Job, "jobs/x.yaml")


def test_a_soup_of_the_best_epochs_needs_them() -> None:
    text = error_of(JOB, "train", {"model_soup": 3, "load_best_model_at_end": False})
    assert text.startswith(
        "jobs/x.yaml: train.load_best_model_at_end: false uses the last epoch, and model_soup"
    )


def test_dropping_inputs_needs_an_optional_one() -> None:
    spec = copy.deepcopy(JOB)
    del spec["inputs"]["audio"]
    text = error_of(spec, "train.modality_dropout", 0.2)
    assert text.startswith("jobs/x.yaml: train.modality_dropout: 0.2 needs an optional input")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("replicas", {"min": 3, "max": 2}, "replicas.max: 2 is less than min 3; use 3 or more"),
        (
            "batching.batch_wait_timeout",
            "5 minutes",
            "batching.batch_wait_timeout: '5 minutes' is not a duration; write 500ms, 5s, 30m, 2h or 1d",
        ),
        (
            "limits.max_body_size",
            "20 apples",
            "limits.max_body_size: '20 apples' is not a size; write 500KB, 20MB or 1GiB",
        ),
        ("route", "/a/", "route: '/a/' is not a route; write /NAME or /A/B, without a slash at the end"),
        ("route", "a", "route: 'a' is not a route; write /NAME or /A/B, without a slash at the end"),
        *(
            (
                "route",
                route,
                f"route: {route!r} is not a route: clients resolve its parts . and ..; write /NAME or /A/B",
            )
            for route in ("/../x", "/a/..", "/./x", "/a/./b", "/.")
        ),
        *(
            (
                "route",
                route,
                f"route: {route!r} is not a route: paths below /- are those of Ray Serve; write /NAME or /A/B",
            )
            for route in ("/-", "/-/routes", "/-/x")
        ),
        ("limits.max_body_size", 0, "limits.max_body_size: must be greater than 0, not 0"),
        ("limits.max_body_size", "0MB", "limits.max_body_size: must be greater than 0, not 0"),
        ("limits.request_timeout", 0, "limits.request_timeout: must be greater than 0, not 0"),
        ("limits.max_queued_requests", 0, "limits.max_queued_requests: must be at least 1, not 0"),
        ("model", "models:/tiny", "model: write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("port", 70000, "port: must be at most 65535, not 70000"),
        ("traffic", {"canary": {}}, "traffic: not implemented yet; leave it out"),
    ],
)
def test_one_error_in_a_service(path: str, value: Any, message: str) -> None:
    assert error_of(SERVICE, path, value) == f"jobs/x.yaml: {message}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.cache", "off", "data.cache: unknown key; did you mean feature_cache?"),
        ("inputs.audio.mels", 8, "inputs.audio.mels: unknown key; did you mean n_mels?"),
        ("inputs.audio.track_of", "v", "inputs.audio.track_of: unknown key; did you mean audio_of?"),
        ("inputs.image.encoder.width", 8, "inputs.image.encoder.width: unknown key; did you mean hidden_size?"),
        ("align", {"type": "transformer", "queries": 2}, "align.queries: unknown key; did you mean num_queries?"),
        ("fusion", {"type": "concat_conv", "kernel": 3}, "fusion.kernel: unknown key; did you mean kernel_size?"),
        ("fusion", {"type": "bottleneck", "tokens": 3}, "fusion.tokens: unknown key; did you mean num_tokens?"),
        ("tasks.answer.focal", 2, "tasks.answer.focal: unknown key; did you mean focal_gamma?"),
        ("train.clip", 1, "train.clip: unknown key; did you mean max_grad_norm?"),
        ("train.accumulate", 1, "train.accumulate: unknown key; did you mean gradient_accumulation_steps?"),
        ("train.optimizer", {"type": "adafactor", "clip": 1}, "train.optimizer.clip: unknown key; did you mean clip_threshold?"),
        ("train.schedule.min", 0.1, "train.schedule.min: unknown key; did you mean min_lr_ratio?"),
        ("train.loss_guard", {"most": 1}, "train.loss_guard.most: unknown key; did you mean max_rollbacks?"),
        ("train.checkpoint", {"every": "1m"}, "train.checkpoint.every: unknown key; did you mean interval?"),
        ("compute.keep_samples", 1, "compute.keep_samples: unknown key; did you mean sample_cache?"),
        ("output.model", "m", "output.model: unknown key; did you mean registered_model?"),
        ("train.subset_loss", {"draw": "single"}, "train.subset_loss.draw: unknown key; did you mean sampling?"),
        ("inputs.image.type", "series", "inputs.image: unknown type `series`; did you mean timeseries?"),
        ("inputs.image.type", "table", "inputs.image: unknown type `table`; did you mean tabular?"),
        ("inputs.image.type", "sequence", "inputs.image: unknown type `sequence`; did you mean item_sequence?"),
        ("inputs.image.augment", [{"type": "flip"}], "inputs.image.augment.0: unknown type `flip`; did you mean horizontal_flip?"),
        ("inputs.audio.augment", [{"type": "mask"}], "inputs.audio.augment.0: unknown type `mask`; did you mean spec_augment?"),
    ],
)  # fmt: skip
def test_a_renamed_key_or_type_suggests_its_new_name(path: str, value: Any, message: str) -> None:
    assert error_of(JOB, path, value) == f"jobs/x.yaml: {message}"


def test_every_renamed_key_leads_to_an_existing_key() -> None:
    known = {
        name
        for kind in KINDS
        for model in [json_schema(spec_class(kind))]
        for block in [model, *model["$defs"].values()]
        for name in block.get("properties", {})
    }
    for table in RENAMED_KEYS.values():
        for new in table.values():
            assert set([new] if isinstance(new, str) else new) <= known
    assert set(EQUIVALENT_KEYS.values()) <= known
