"""Valid specs of encoders and alignments, and the errors of invalid ones."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from rayfuse.errors import SpecError
from rayfuse.spec.encoders import VideoEncoderConfig, iter_encoders, iter_pretrained_encoders
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec


def job_with(encoder: dict[str, Any], kind: str = "text", align: dict[str, Any] | None = None) -> Job:
    content: dict[str, Any] = {
        "kind": "job",
        "name": "tiny",
        "data": {"train": "/train.jsonl"},
        "inputs": {"x": {"type": kind, "encoder": encoder}},
        "align": align or {"type": "linear"},
        "fusion": {"type": "concat"},
        "tasks": {"answer": {"type": "classification", "column": "label"}},
        "output": {"storage": "/runs"},
    }
    job: Job = validate_spec(content, Job, "job.yaml")
    return job


def pretrained(**options: Any) -> dict[str, Any]:
    return {"type": "huggingface", "model": "org/name", **options}


def test_ways_to_train() -> None:
    for train in ("frozen", "last:1", "last:12", "lora", "ia3", "oft", "full"):
        encoder: Any = job_with(pretrained(train=train)).inputs["x"].encoder
        assert (encoder.adapter is not None) == (train in ("lora", "ia3", "oft"))
        assert encoder.last_layers == ({"last:1": 1, "last:12": 12}.get(train))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"train": "last"}, "inputs.x.encoder.train: 'last' is not one of: frozen, lora, ia3, oft, full, last:N"),
        ({"train": "last:0"}, "inputs.x.encoder.train: 'last:0' is not one of: frozen"),
        ({"pool": "median"}, "inputs.x.encoder.pool: 'median' is not one of: mean, first, last, max, attention, none"),
        ({"train": "lora", "lora": {"init_lora_weights": "eva", "init_samples": 0}}, "inputs.x.encoder.lora.init_samples: must be at least 1"),
        ({"train": "lora", "lora": {"init_lora_weights": "pisa"}}, "'pisa' is not an initialization; one of: default, "),
        ({"train": "lora", "lora": {"init_lora_weights": "pissa_niter_x"}}, "'pissa_niter_x' is not an initialization"),
        ({"train": "lora", "lora": {"init_lora_weights": "orthogonal", "r": 3}}, "inputs.x.encoder.lora.r: 3 is odd"),
        ({"train": "lora", "lora": {"init_lora_weights": "mica", "use_dora": True}}, "inputs.x.encoder.lora.use_dora: true cannot be combined with init_lora_weights: mica"),
        ({"train": "lora", "lora": {"rank_pattern": {"query": 0}}}, "inputs.x.encoder.lora.rank_pattern.query: must be at least 1"),
        ({"layer_decay": 0.9}, "inputs.x.encoder.layer_decay: 0.9 has no effect on a frozen encoder"),
        ({"train": "oft", "oft": {"block_size": 8}}, "inputs.x.encoder.oft.block_size: unknown key; did you mean oft_block_size?"),
    ],
)  # fmt: skip
def test_errors_of_pretrained_encoders(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        job_with(pretrained(**options))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "encoder", "problem"),
    [
        ("text", {"type": "transformer", "hidden_size": 64, "heads": 5}, "encoder.heads: 5 does not divide hidden_size 64"),
        ("text", {"type": "transformer", "hidden_size": 10, "heads": 5}, "encoder.hidden_size: 10 is not a multiple of 4"),
        ("text", {"type": "resnet"}, "unknown type `resnet`; one of: conv, ngrams, gru, lstm, transformer, huggingface"),
        ("image", {"type": "gru"}, "unknown type `gru`; one of: conv, resnet, transformer, huggingface"),
        ("audio", {"type": "lstm", "strid": 2}, "encoder.strid: unknown key; did you mean stride?"),
        ("image", {"type": "resnet", "depths": []}, "encoder.depths: must have at least 1 item"),
        ("text", {"type": "ngrams", "pretrained": pretrained(pool="none")}, "inputs.x.encoder.pretrained.pool: `none`, and n-grams are one vector"),
        ("text", {"type": "ngrams", "pretrained": pretrained(layer_decay=0.5)}, "inputs.x.encoder.pretrained.layer_decay: 0.5 has no effect"),
    ],
)  # fmt: skip
def test_errors_of_built_in_encoders(kind: str, encoder: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        job_with(encoder, kind)
    assert problem in str(caught.value)


def test_an_encoder_inside_another() -> None:
    block: Any = TypeAdapter(VideoEncoderConfig).validate_python(
        {"type": "frames", "encoder": pretrained(layer_decay=0.9)}
    )
    assert [path for path, _ in iter_encoders(block)] == [(), ("encoder",)]
    assert [(path, found.model) for path, found in iter_pretrained_encoders(block)] == [
        (("encoder",), "org/name")
    ]
    assert [where for where, _ in block.validate_in_job(None)] == ["encoder.layer_decay"]


def test_augmentation_of_n_grams_beside_a_pretrained_encoder_is_rejected() -> None:
    job = job_with({"type": "ngrams", "pretrained": pretrained()})
    with pytest.raises(
        SpecError, match=r"inputs\.x\.augment: changes n-grams, and `encoder\.pretrained` would read"
    ):
        job.override(**{"inputs.x.augment": [{"type": "token_dropout"}]})


def test_errors_of_alignments() -> None:
    conv = {"type": "conv"}
    with pytest.raises(SpecError, match="align: unknown type `linar`; did you mean linear"):
        job_with(conv, align={"type": "linar"})
    with pytest.raises(SpecError, match=r"align: must be a mapping, not 'linear'"):
        job_with(conv, align="linear")  # type: ignore[arg-type]
    assert job_with(conv, align={"dim": 16}).align.type == "linear"
    with pytest.raises(SpecError, match=r"align\.heads: 5 does not divide dim 64"):
        job_with(conv, align={"type": "transformer", "dim": 64, "heads": 5})
