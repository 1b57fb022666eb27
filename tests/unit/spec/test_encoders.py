"""What the specs of encoders and alignments allow, and what they say of mistakes."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from rayfuse.errors import SpecError
from rayfuse.spec.encoders import VideoEncoder, encoders_in, pretrained_in
from rayfuse.spec.job import Job
from rayfuse.spec.load import check


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
    job: Job = check(content, Job, "job.yaml")
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
        ({"train": "last"}, "inputs.x.encoder.train: 'last' does not match ^(frozen|last:"),
        ({"train": "last:0"}, "inputs.x.encoder.train: 'last:0' does not match"),
        ({"pool": "median"}, "inputs.x.encoder.pool: 'median' is not one of: 'mean', 'first', 'last', 'max', 'attention' or 'none'"),
        ({"train": "lora", "lora": {"init": "eva", "init_rows": 0}}, "inputs.x.encoder.lora.init_rows: should be greater"),
        ({"train": "lora", "lora": {"init": "pisa"}}, "'pisa' is not an initialisation; one of: default, "),
        ({"train": "lora", "lora": {"init": "pissa_niter_x"}}, "'pissa_niter_x' is not an initialisation"),
        ({"train": "lora", "lora": {"init": "orthogonal", "r": 3}}, "inputs.x.encoder.lora.r: rank 3 is odd"),
        ({"train": "lora", "lora": {"init": "mica", "dora": True}}, "inputs.x.encoder.lora.dora: does not go with init: mica"),
        ({"train": "lora", "lora": {"rank_pattern": {"query": 0}}}, "inputs.x.encoder.lora.rank_pattern.query: should be greater"),
        ({"layer_decay": 0.9}, "inputs.x.encoder.layer_decay: a frozen encoder has no learning rates"),
        ({"train": "oft", "oft": {"block": 8}}, "inputs.x.encoder.oft.block: unknown key; did you mean block_size?"),
    ],
)  # fmt: skip
def test_mistakes_in_pretrained_encoders(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as refused:
        job_with(pretrained(**options))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "encoder", "problem"),
    [
        ("text", {"type": "transformer", "width": 64, "heads": 5}, "encoder.heads: 5 heads do not divide width 64"),
        ("text", {"type": "transformer", "width": 10, "heads": 5}, "encoder.width: 10 is not a multiple of 4"),
        ("text", {"type": "resnet"}, "unknown type `resnet`; one of: conv, gru, lstm, transformer, huggingface"),
        ("image", {"type": "gru"}, "unknown type `gru`; one of: conv, resnet, transformer, huggingface"),
        ("audio", {"type": "lstm", "strid": 2}, "encoder.strid: unknown key; did you mean stride?"),
        ("image", {"type": "resnet", "blocks": []}, "encoder.blocks: should have at least 1 item"),
    ],
)  # fmt: skip
def test_mistakes_in_built_in_encoders(kind: str, encoder: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as refused:
        job_with(encoder, kind)
    assert problem in str(refused.value)


def test_an_encoder_inside_another() -> None:
    block: Any = TypeAdapter(VideoEncoder).validate_python(
        {"type": "frames", "encoder": pretrained(layer_decay=0.9)}
    )
    assert [path for path, _ in encoders_in(block)] == [(), ("encoder",)]
    assert [(path, found.model) for path, found in pretrained_in(block)] == [(("encoder",), "org/name")]
    assert [where for where, _ in block.problems(None)] == ["encoder.layer_decay"]


def test_mistakes_in_alignments() -> None:
    conv = {"type": "conv"}
    with pytest.raises(SpecError, match="align: unknown type `linar`; did you mean linear"):
        job_with(conv, align={"type": "linar"})
    with pytest.raises(SpecError, match=r"align: a mapping belongs here, not 'linear'"):
        job_with(conv, align="linear")  # type: ignore[arg-type]
    assert job_with(conv, align={"dim": 16}).align.type == "linear"
    with pytest.raises(SpecError, match=r"align\.heads: 5 heads do not divide dim 64"):
        job_with(conv, align={"type": "transformer", "dim": 64, "heads": 5})
