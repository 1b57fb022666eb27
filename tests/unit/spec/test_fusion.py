"""What is wrong with a fusion is said from the spec alone."""

import json
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.load import check

POOLED = {"type": "huggingface", "model": "/models/any"}
TOKENS = {**POOLED, "pool": "none"}
CONV = {"type": "conv"}
CONCAT = {"type": "concat"}


def job(fusion: dict[str, Any], text: dict[str, Any] = CONV, **more: dict[str, Any]) -> Job:
    """A job over a text and a picture, and more pictures by name and encoder."""
    pictures = {"image": CONV, **more}
    inputs = {
        "text": {"type": "text", "encoder": text},
        **{name: {"type": "image", "encoder": encoder} for name, encoder in pictures.items()},
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
    return check(spec, Job, "x.yaml")


def error_of(*args: Any, **more: Any) -> str:
    with pytest.raises(SpecError) as refused:
        job(*args, **more)
    return str(refused.value).removeprefix("x.yaml: ")


def tree(last: dict[str, Any] = CONCAT, **groups: Any) -> dict[str, Any]:
    """`name=[members]`, joined by concat, or `name=([members], fusion)`."""
    made = {
        name: {"members": group[0], "fusion": group[1]}
        if isinstance(group, tuple)
        else {"members": group, "fusion": CONCAT}
        for name, group in groups.items()
    }
    return {"type": "hierarchical", "groups": made, "fusion": last}


@pytest.mark.parametrize("type_", ["attention", "cross_attention", "transformer", "bottleneck"])
def test_heads_divide_the_width(type_: str) -> None:
    found = error_of({"type": type_, "heads": 3}, text=TOKENS)
    assert found == "fusion.heads: 3 heads do not divide align.dim 128"


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"type": "film"}, "fusion.condition: missing"),
        ({"type": "film", "condition": "txt"}, "fusion.condition: no input `txt`; did you mean text?"),
        ({"type": "film", "condition": "smell"}, "fusion.condition: no input `smell`; one of: text, image, depth"),
        ({"type": "cross_attention", "query": ["imag"]}, "fusion.query: no input `imag`; did you mean image?"),
        ({"type": "cross_attention", "query": []}, "fusion.query: should have at least 1 item, not []"),
        ({"type": "cross_attention", "query": ["text", "text"]}, "fusion.query: text, text: an input queries the others once; name it once"),
        ({"type": "bottleneck", "layers": 1}, "fusion.layers: should be greater than or equal to 2, not 1"),
        (tree(), "fusion.groups: should have at least 1 item, not {}"),
        (tree(a=[]), "fusion.groups.a.members: should have at least 1 item, not []"),
        (tree(a=["imge"]), "fusion.groups.a.members: no input or group `imge`; did you mean image?"),
        (tree(text=["image"]), "fusion.groups.text: an input has this name; call the group otherwise"),
        (tree(a=["image", "text"], b=["text"]), "fusion.groups.b.members: `text` is in a already; each is in one place of the tree"),
        (tree(a=["text", "text"]), "fusion.groups.a.members: `text` is in a already; each is in one place of the tree"),
        (tree(a=["b", "text"], b=["a"]), "fusion.groups.a.members: groups contain each other: a in b in a"),
        (tree(a=["a"]), "fusion.groups.a.members: groups contain each other: a in a"),
        (tree(a=(["text"], {"type": "vote"})), "fusion.groups.a.fusion.type: vote joins answers and makes no vector for the next fusion; only the last may"),
        (tree(a=(["text", "image"], {"type": "film", "condition": "depth"})), "fusion.groups.a.fusion.condition: no input `depth`; one of: text, image"),
        (tree({"type": "transformer", "heads": 3}, a=["text"]), "fusion.fusion.heads: 3 heads do not divide align.dim 128"),
        (tree({"type": "film", "condition": "b"}, a=["text"]), "fusion.fusion.condition: no input `b`; one of: image, depth, a"),
        (tree(a=(["text"], {"type": "concat", "hiden": 8})), "fusion.groups.a.fusion.hiden: unknown key; did you mean hidden?"),
        (tree(a=(["text"], {"type": "gatd"})), "fusion.groups.a.fusion: unknown type `gatd`; did you mean gated?"),
        (tree(a=(["text"], {"type": "os:"})), "fusion.groups.a.fusion.type: 'os:' does not match ^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"),
        (tree({"type": "hierarchical"}, a=["text"]), "fusion.fusion: unknown type `hierarchical`; "),
    ],
)  # fmt: skip
def test_one_mistake(fusion: dict[str, Any], message: str) -> None:
    found = error_of(fusion, depth=CONV)
    assert found == message or (message.endswith(" ") and found.startswith(message))


def test_attention_over_one_pooled_vector_is_refused() -> None:
    query = {"type": "cross_attention", "query": ["image"]}
    message = (
        "fusion.query: `image` would attend to one vector, as the encoder of `text` pools, and attention chooses "
        "among several; take an encoder that hands on its tokens (`pool: none`), or gated fusion"
    )
    assert error_of(query, text=POOLED) == message
    assert error_of({"type": "cross_attention"}).startswith("fusion.query: `text` would attend to one vector")
    assert error_of({**query, "query": ["text"]}, text=TOKENS).startswith("fusion.query: `text` would attend")
    job(query, text=TOKENS)
    job({"type": "cross_attention"}, text=TOKENS)
    job({"type": "cross_attention"}, depth=CONV)


def test_one_input_cannot_query_or_condition_others() -> None:
    alone = tree(a=(["text"], {"type": "cross_attention"}))
    assert error_of(alone).startswith("fusion.groups.a.fusion.type: there is one input, and no other")
    alone = tree(a=(["text"], {"type": "film", "condition": "text"}))
    assert error_of(alone).startswith("fusion.groups.a.fusion.condition: there is one input, and no other")


def test_a_bottleneck_needs_tokens() -> None:
    bottleneck = {"type": "bottleneck"}
    assert error_of(bottleneck, text=POOLED) == (
        "fusion.type: text, image come as one vector each, as their encoders pool, and a bottleneck squeezes many "
        "tokens; take an encoder that hands on its tokens (`pool: none`), or transformer fusion"
    )
    job(bottleneck, text=TOKENS)
    job(bottleneck, image={"type": "my.encoders:Own"})
    inner = tree(bottleneck, a=["text"])
    assert error_of(inner, text=TOKENS).startswith("fusion.fusion.type: image, a come as one vector each")


def test_a_tree_knows_its_order_and_what_is_joined_last() -> None:
    fusion: Any = job(tree(b=["a", "image"], a=["text"]), depth=CONV).fusion
    assert fusion.ordered() == ["a", "b"]
    assert fusion.last(["text", "image", "depth"]) == ["depth", "b"]


def test_a_tree_comes_back_from_its_stored_form() -> None:
    mine = {"type": "my.package:Fusion", "options": {"size": 3}}
    spec = job(tree({"type": "learned"}, a=(["text", "image"], mine)))
    assert check(json.loads(spec.model_dump_json()), Job, "stored") == spec
