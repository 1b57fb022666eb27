"""What is said about a wrong value: the path as written, the rule, and the nearest right thing."""

import copy
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.load import check
from rayfuse.spec.service import Service
from rayfuse.spec.tasks import CLASSIFICATION_METRICS

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
    """The message about a spec in which one value is another."""
    spec = copy.deepcopy(spec)
    node, *keys = spec, *path.split(".")
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    if value is LEFT_OUT:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    with pytest.raises(SpecError) as caught:
        check(spec, {"job": Job, "service": Service}[spec["kind"]], "jobs/x.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inputs.audio.sample_rat", 8000, "inputs.audio.sample_rat: unknown key; did you mean sample_rate?"),
        ("trian", {}, "trian: unknown key; did you mean train?"),
        ("train.optimizer.learning_rate", 1, "train.optimizer.learning_rate: unknown key; one of: type, lr, weight_decay, betas, eps"),
        ("train.deepspeed.stag", 1, "train.deepspeed.stag: unknown key; did you mean stage?"),
        ("data.validation", {"fractoin": 0.1}, "data.validation.fraction: missing\njobs/x.yaml: data.validation.fractoin: unknown key; did you mean fraction?"),
        ("data.validation", {"fraction": 1.5}, "data.validation.fraction: should be less than 1, not 1.5"),
        ("data.validation", 0.1, "data.validation: a mapping belongs here, not 0.1"),
        ("data.train", LEFT_OUT, "data.train: missing"),
        ("data.train", "", "data.train: should have at least 1 character, not ''"),
        ("name", None, "name: should be a valid string, not None"),
        ("name", "a/b", "name: 'a/b' does not match ^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"),
        ("train.epochs", "many", "train.epochs: should be a valid integer, not 'many'"),
        ("train.epochs", 1.5, "train.epochs: should be a valid integer, not 1.5"),
        ("train.optimizer.lr", 0, "train.optimizer.lr: should be greater than 0, not 0"),
        ("train.optimizer.lr", float("nan"), "train.optimizer.lr: should be a finite number, not nan"),
        ("train.precision", "bf61", "train.precision: 'bf61' is not one of: 'auto', 'bf16', 'fp16' or 'fp32'"),
        ("train", [], "train: a mapping belongs here, not []"),
        ("inputs", {}, "inputs: should have at least 1 item, not {}"),
        ("inputs.my-input", {"type": "image", "encoder": {"type": "conv"}}, "inputs.my-input: 'my-input' does not match ^[A-Za-z_][A-Za-z0-9_]*$"),
        ("inputs.image", {"encoder": {"type": "conv"}}, "inputs.image: `type` is missing; one of: image, audio, video, text, series, table, sequence"),
        ("inputs.image.type", "imgae", "inputs.image: unknown type `imgae`; did you mean image?"),
        ("inputs.image.type", "smell", "inputs.image: unknown type `smell`; one of: image, audio, video, text, series, table, sequence"),
        ("inputs.image.encoder", "conv", "inputs.image.encoder: a mapping belongs here, not 'conv'"),
        ("inputs.image.encoder.widht", 8, "inputs.image.encoder.widht: unknown key; did you mean width?"),
        ("fusion.type", "gatd", "fusion: unknown type `gatd`; did you mean gated?"),
        ("tasks.answer.type", "generation", "tasks.answer: type `generation` is not built yet; one of: classification, multi_label, ordinal, regression, tagging, matching, retrieval, ranking"),
        ("align.loss", {"type": "contrastiv"}, "align.loss.0: unknown type `contrastiv`; did you mean contrastive?"),
        ("align.loss", [{"type": "margin", "margn": 1}], "align.loss.0.margn: unknown key; did you mean margin?"),
        ("align.loss", [{"type": "margin"}, {"type": "margin"}], "align.loss: `margin` is listed twice, not [{'type': 'margin'}, {'type': 'margin'}]"),
        ("inputs.text", {"type": "text", "encoder": {"type": "huggingface", "model": "./m", "hidden_states": [-1, 2]}}, "inputs.text.encoder.hidden_states: [-1, 2] is not a list of hidden states; name each once, and end with -1, the last"),
        ("inputs.audio.augment", [{"type": "affine"}], "inputs.audio.augment.0: unknown type `affine`; did you mean gain?"),
        ("inputs.audio.augment", [{"type": "shift"}, {"type": "gain"}], "inputs.audio.augment.1: `gain` is for waveforms, and features are `mel`"),
        ("inputs.image.augment", [{"type": "affine", "scale": [1.2, 0.8]}], "inputs.image.augment.0.scale: [1.2, 0.8] is not a range; write [LOWEST, HIGHEST]"),
        ("train.subset_loss", {"draw": "some"}, "train.subset_loss.draw: 'some' is not one of: 'random', 'single' or 'each'"),
        ("train.optimizer", {"type": "adamax"}, "train.optimizer: unknown type `adamax`; did you mean adamw?"),
        ("train.optimizer", {"type": "sgd", "momentum": 0, "nesterov": True}, "train.optimizer.nesterov: looks ahead along a momentum of 0; give a momentum"),
        ("train.optimizer", {"type": "muon"}, "train.optimizer.type: muon orthogonalises whole matrices, and ZeRO stage 2 hands each worker flat parts of them; use train.deepspeed.stage 0, or adamw, sgd or lion"),
        ("train", {"optimizer": {"type": "adafactor"}, "deepspeed": {"stage": 1}}, "train.optimizer.type: adafactor scales its steps by rows, columns and the size of whole weights, and ZeRO stage 1 hands each worker flat parts of them; use train.deepspeed.stage 0, or adamw, sgd or lion"),
        ("train.groups", [{"match": "*.bias"}], "train.groups.0: changes nothing; give lr, weight_decay or both, not {'match': '*.bias'}"),
        ("train.schedule", {"type": "wds"}, "train.schedule: unknown type `wds`; did you mean wsd?"),
        ("train.schedule", {"warmup": 1.5}, "train.schedule.warmup: 1.5 is not a share; write a whole number for steps, 0.05 or 5% for a share"),
        ("train.schedule", {"warmup": -1}, "train.schedule.warmup: should be greater than or equal to 0, not -1"),
        ("train.schedule", {"type": "constant", "min": 0.1}, "train.schedule.min: unknown key; one of: warmup, type"),
        ("train.schedule", {"type": "wsd", "warmup": 0.6, "decay": 0.5}, "train.schedule.decay: warmup 0.6 and decay 0.5 together are more than all steps; lower one"),
        ("train.deepspeed.offload", "cpu", "train.deepspeed.offload: a mapping belongs here, not 'cpu'"),
        ("train.deepspeed.offload", {"optimizer": "nvme"}, "train.deepspeed.offload.optimizer: 'nvme' is not one of: 'cpu'"),
        ("train.deepspeed", {"stage": 2, "offload": {"parameters": "cpu"}}, "train.deepspeed.offload.parameters: ZeRO stage 2 keeps this where it is used; use stage 3"),
        ("train.deepspeed", {"stage": 0, "offload": {"optimizer": "cpu"}}, "train.deepspeed.offload.optimizer: ZeRO stage 0 keeps this where it is used; use stage 1, 2 or 3"),
        ("compute.workers", [1, 8], "compute.workers: not built yet; leave it out"),
        ("compute.workers", 0, "compute.workers: should be greater than or equal to 1, not 0"),
        ("data.max_bad_rows", "half", "data.max_bad_rows: 'half' is not a share; write 0.01 or 1%"),
        ("tasks.answer.classes", ["a"], "tasks.answer.classes: should have at least 2 items, not ['a']"),
        ("tasks.answer.column", "image", "tasks: column `image` is an input and a target; a model would just copy it"),
        ("train.batch_size", 0, "train.batch_size: should be greater than or equal to 1, not 0"),
        ("train.early_stopping", {"metric": "answer/acuracy"}, "train.early_stopping.metric: no task reports `answer/acuracy`; one of: " + REPORTED),
        ("fusion", {"type": "transformer", "heads": 3}, "fusion.heads: 3 heads do not divide align.dim 128"),
        ("compute.workers", 64, "train.batch_size: 32 is less than compute.workers × train.accumulate = 64"),
    ],
)  # fmt: skip
def test_one_mistake_in_a_job(path: str, value: Any, message: str) -> None:
    assert error_of(JOB, path, value) == f"jobs/x.yaml: {message}"


def test_every_mistake_gets_a_line_once() -> None:
    spec = copy.deepcopy(JOB)
    spec |= {"trian": {}, "train": {"epochs": 0}, "fusion": {"type": "concat", "hiden": 1}}
    with pytest.raises(SpecError) as caught:
        check(spec, Job, "jobs/x.yaml")
    assert str(caught.value).splitlines() == [
        "jobs/x.yaml: fusion.hiden: unknown key; did you mean hidden?",
        "jobs/x.yaml: train.epochs: should be greater than or equal to 1, not 0",
        "jobs/x.yaml: trian: unknown key; did you mean train?",
    ]


def test_keys_that_are_no_text() -> None:
    with pytest.raises(SpecError, match=r"inputs\.1: "):
        check(JOB | {"inputs": {1: {"type": "image", "encoder": {"type": "conv"}}}}, Job, "jobs/x.yaml")
    with pytest.raises(SpecError, match=r"jobs/x\.yaml: 1: a key must be text; put it in quotes$"):
        check(JOB | {1: 2}, Job, "jobs/x.yaml")


def test_dropping_inputs_needs_an_optional_one() -> None:
    spec = copy.deepcopy(JOB)
    del spec["inputs"]["audio"]
    text = error_of(spec, "train.input_dropout", 0.2)
    assert text.startswith("jobs/x.yaml: train.input_dropout: no input is optional")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("replicas", {"min": 3, "max": 2}, "replicas.max: 2 is less than min 3"),
        (
            "batching.wait",
            "5 minutes",
            "batching.wait: '5 minutes' is not a duration; write 500ms, 5s, 30m, 2h or 1d",
        ),
        ("limits.body", "20 apples", "limits.body: '20 apples' is not a size; write 500KB, 20MB or 1GiB"),
        ("route", "/a/", "route: '/a/' is not a route; write /NAME or /A/B, without a slash at the end"),
        ("route", "a", "route: 'a' is not a route; write /NAME or /A/B, without a slash at the end"),
        ("model", "models:/tiny", "model: write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("port", 70000, "port: should be less than or equal to 65535, not 70000"),
        ("traffic", {"canary": {}}, "traffic: not built yet; leave it out"),
    ],
)
def test_one_mistake_in_a_service(path: str, value: Any, message: str) -> None:
    assert error_of(SERVICE, path, value) == f"jobs/x.yaml: {message}"
