"""Errors of fusions that the spec alone shows."""

import json
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.load import validate_spec

POOLED = {"type": "huggingface", "model": "/models/any"}
TOKENS = {**POOLED, "pool": "none"}
CONV = {"type": "conv"}
CONCAT = {"type": "concat"}


def job(fusion: dict[str, Any], text: dict[str, Any] = CONV, **more: dict[str, Any]) -> Job:
    """Return a job with a text, an image, and further images by name and encoder."""
    images = {"image": CONV, **more}
    inputs = {
        "text": {"type": "text", "encoder": text},
        **{name: {"type": "image", "encoder": encoder} for name, encoder in images.items()},
    }
    spec = {
        "kind": "job",
        "name": "tiny",
        "data": {"train": "/train.jsonl"},
        "inputs": inputs,
        "fusion": fusion,
        "tasks": {"answer": {"type": "classification"}},
        "output": {"storage": "/runs"},
    }
    return validate_spec(spec, Job, "x.yaml")


def error_of(*args: Any, **more: Any) -> str:
    with pytest.raises(SpecError) as caught:
        job(*args, **more)
    return str(caught.value).removeprefix("x.yaml: ")


def tree(last: dict[str, Any] = CONCAT, **groups: Any) -> dict[str, Any]:
    """`name=[members]`, joined by concat, or `name=([members], fusion)`."""
    made = {
        name: {"members": group[0], "fusion": group[1]}
        if isinstance(group, tuple)
        else {"members": group, "fusion": CONCAT}
        for name, group in groups.items()
    }
    return {"type": "hierarchical", "groups": made, "fusion": last}


@pytest.mark.parametrize("type_", ["attention", "compare", "cross_attention", "transformer", "bottleneck"])
def test_heads_divide_the_width(type_: str) -> None:
    found = error_of({"type": type_, "heads": 3}, text=TOKENS)
    assert found == "fusion.heads: 3 does not divide align.dim 128; use a divisor of 128"


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"type": "film"}, "fusion.conditioned_on: missing"),
        ({"type": "film", "conditioned_on": "txt"}, "fusion.conditioned_on: no input `txt`; did you mean text?"),
        ({"type": "film", "conditioned_on": "smell"}, "fusion.conditioned_on: no input `smell`; one of: text, image, depth"),
        ({"type": "compare", "demote": "txt"}, "fusion.demote: no input `txt`; did you mean text?"),
        (tree(a=(["text", "image"], {"type": "compare", "demote": "text"})), "fusion.groups.a.fusion.type: compare needs 2 inputs next to `text`, and there is 1; use mlp"),
        ({"type": "cross_attention", "query": ["imag"]}, "fusion.query: no input `imag`; did you mean image?"),
        ({"type": "cross_attention", "query": []}, "fusion.query: must have at least 1 item, not []"),
        ({"type": "cross_attention", "query": ["text", "text"]}, "fusion.query: text, text: an input is listed twice; list each once"),
        ({"type": "bottleneck", "layers": 1}, "fusion.layers: must be at least 2, not 1"),
        (tree(), "fusion.groups: must have at least 1 item, not {}"),
        (tree(a=[]), "fusion.groups.a.members: must have at least 1 item, not []"),
        (tree(a=["imge"]), "fusion.groups.a.members: no input or group `imge`; did you mean image?"),
        (tree(text=["image"]), "fusion.groups.text: `text` is also the name of an input; rename the group"),
        (tree(a=["image", "text"], b=["text"]), "fusion.groups.b.members: `text` is already in a; list it in one group"),
        (tree(a=["text", "text"]), "fusion.groups.a.members: `text` is already in a; list it in one group"),
        (tree(a=["b", "text"], b=["a"]), "fusion.groups.a.members: groups contain each other: a in b in a"),
        (tree(a=["a"]), "fusion.groups.a.members: groups contain each other: a in a"),
        (tree(a=(["text"], {"type": "vote"})), "fusion.groups.a.fusion.type: vote combines predictions and has no vector for the next fusion; use it only at the root"),
        (tree(a=(["text", "image"], {"type": "film", "conditioned_on": "depth"})), "fusion.groups.a.fusion.conditioned_on: no input `depth`; one of: text, image"),
        (tree({"type": "transformer", "heads": 3}, a=["text"]), "fusion.fusion.heads: 3 does not divide align.dim 128; use a divisor of 128"),
        (tree({"type": "film", "conditioned_on": "b"}, a=["text"]), "fusion.fusion.conditioned_on: no input `b`; one of: image, depth, a"),
        (tree(a=(["text"], {"type": "concat", "hiden": 8})), "fusion.groups.a.fusion.hiden: unknown key; did you mean hidden?"),
        (tree(a=(["text"], {"type": "gatd"})), "fusion.groups.a.fusion: unknown type `gatd`; did you mean gated?"),
        (tree(a=(["text"], {"type": "os:"})), "fusion.groups.a.fusion.type: 'os:' is not an import path; write MODULE:CLASS, as in my_package.module:MyPart"),
        (tree({"type": "hierarchical"}, a=["text"]), "fusion.fusion: unknown type `hierarchical`; "),
    ],
)  # fmt: skip
def test_each_error_has_its_message(fusion: dict[str, Any], message: str) -> None:
    found = error_of(fusion, depth=CONV)
    assert found == message or (message.endswith(" ") and found.startswith(message))


def test_attention_over_one_pooled_vector_is_rejected() -> None:
    query = {"type": "cross_attention", "query": ["image"]}
    message = (
        "fusion.query: `image` would attend to a single vector, as the encoder of `text` pools; "
        "set `pool: none` for that encoder, or use gated fusion"
    )
    assert error_of(query, text=POOLED) == message
    assert error_of({"type": "cross_attention"}).startswith(
        "fusion.query: `text` would attend to a single vector"
    )
    assert error_of({**query, "query": ["text"]}, text=TOKENS).startswith("fusion.query: `text` would attend")
    job(query, text=TOKENS)
    job({"type": "cross_attention"}, text=TOKENS)
    job({"type": "cross_attention"}, depth=CONV)


def test_one_input_cannot_query_condition_or_be_compared_with_others() -> None:
    alone = tree(a=(["text"], {"type": "compare"}))
    assert error_of(alone) == "fusion.groups.a.fusion.type: compare needs 2 inputs, and there is 1; use mlp"
    alone = tree(a=(["text"], {"type": "cross_attention"}))
    assert error_of(alone).startswith(
        "fusion.groups.a.fusion.type: cross_attention needs 2 inputs, and there is 1"
    )
    alone = tree(a=(["text"], {"type": "film", "conditioned_on": "text"}))
    assert error_of(alone).startswith(
        "fusion.groups.a.fusion.conditioned_on: film needs 2 inputs, and there is 1"
    )


def test_a_bottleneck_needs_tokens() -> None:
    bottleneck = {"type": "bottleneck"}
    assert error_of(bottleneck, text=POOLED) == (
        "fusion.type: bottleneck needs an input with many tokens, and the encoders of text, image pool; "
        "set `pool: none` for an encoder, or use transformer fusion"
    )
    job(bottleneck, text=TOKENS)
    job(bottleneck, image={"type": "my.encoders:Own"})
    inner = tree(bottleneck, a=["text"])
    assert error_of(inner, text=TOKENS).startswith(
        "fusion.fusion.type: bottleneck needs an input with many tokens"
    )


def test_a_tree_returns_its_order_and_root_members() -> None:
    fusion: Any = job(tree(b=["a", "image"], a=["text"]), depth=CONV).fusion
    assert fusion.topological_order() == ["a", "b"]
    assert fusion.root_members(["text", "image", "depth"]) == ["depth", "b"]


def test_a_tree_round_trips_through_json() -> None:
    mine = {"type": "my.package:Fusion", "options": {"size": 3}}
    spec = job(tree({"type": "learned"}, a=(["text", "image"], mine)))
    assert validate_spec(json.loads(spec.model_dump_json()), Job, "stored") == spec
