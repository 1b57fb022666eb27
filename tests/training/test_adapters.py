"""Adapters: what is trained, and that a saved model answers the same, whatever its adapters began as."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch
from torch import nn
from variants import train_and_reload

from rayfuse.data.dataset import load_dataset
from rayfuse.errors import SpecError
from rayfuse.model.encoders.adapters import with_adapters
from rayfuse.model.folder import load_model
from rayfuse.model.fused import FusedModel, trained_tensors
from rayfuse.spec.encoders import IA3, OFT, Lora
from rayfuse.train.precision import round_frozen

VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {"train": "lora", "lora": {"r": 2, "init": "gaussian"}},
    "orthogonal": {"train": "lora", "lora": {"r": 2, "init": "orthogonal"}},
    "olora": {"train": "lora", "lora": {"r": 2, "init": "olora"}},
    "mica": {"train": "lora", "lora": {"r": 2, "init": "mica"}},
    "pissa": {"train": "lora", "lora": {"r": 2, "init": "pissa"}},
    "pissa_niter_2": {"train": "lora", "lora": {"r": 2, "init": "pissa_niter_2"}},
    "eva": {"train": "lora", "lora": {"r": 2, "init": "eva"}},
    "corda": {"train": "lora", "lora": {"r": 2, "init": "corda"}},
    "lora_ga": {"train": "lora", "lora": {"r": 2, "init": "lora_ga"}},
    "loftq": {"train": "lora", "lora": {"r": 2, "init": "loftq"}},
    "corda and dora": {"train": "lora", "lora": {"r": 2, "init": "corda", "dora": True}},
    "patterns": {
        "train": "lora",
        "lora": {"r": 2, "rank_pattern": {"query": 4}, "alpha_pattern": {r"layer\.1\..*key": 1}},
    },
    "dora": {"train": "lora", "lora": {"r": 2, "dora": True}},
    "rslora": {"train": "lora", "lora": {"r": 2, "rslora": True}},
    "pissa and dora": {"train": "lora", "lora": {"r": 2, "init": "pissa", "dora": True}},
    "modules_to_save": {"train": "lora", "lora": {"r": 2, "modules_to_save": ["LayerNorm"]}},
    "ia3": {"train": "ia3"},
    "ia3 in the last layer": {"train": "ia3", "ia3": {"layers": 1, "feedforward": ["output.dense"]}},
    "oft": {"train": "oft", "oft": {"block_size": 8}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tiny_encoders.bert(top / "bert")
    tiny_encoders.gpt2(top / "gpt2")
    return top


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def job_of(rows: Path, model: Path, **encoder: Any) -> Any:
    block = {"type": "huggingface", "model": str(model), **encoder}
    return tiny_jobs.tiny_job(rows, **{"inputs.text.encoder": block})


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_adapter_trains_and_is_the_same_after_loading(
    variant: str, models: Path, rows: Path, tmp_path: Path
) -> None:
    model, _ = train_and_reload(tmp_path, job_of(rows, models / "bert", **VARIANTS[variant]))
    trained = {name for name, p in model.encoders["text"].named_parameters() if p.requires_grad}
    words = ("lora_", "ia3_", "oft_", "modules_to_save")
    assert trained
    assert all(any(word in name for word in words) for name in trained)


@pytest.mark.parametrize("init", ["default", "pissa", "eva", "corda", "lora_ga", "loftq"])
def test_transposed_linear_maps(init: str, models: Path, rows: Path, tmp_path: Path) -> None:
    train_and_reload(
        tmp_path, job_of(rows, models / "gpt2", train="lora", lora={"r": 2, "init": init}, pool="last")
    )


def upside_down(weight: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    """Another machine's decomposition: other signs, and the second and third singular vectors have changed places."""
    u, s, v = _SVD(weight, full_matrices=False)
    order = [0, 2, 1, *range(3, len(s))]
    return -u[:, order], s[order], -v[order]


_SVD = torch.linalg.svd


@pytest.mark.parametrize(
    ("kind", "init"), [("bert", "pissa"), ("bert", "mica"), ("bert", "olora"), ("gpt2", "pissa")]
)
def test_another_machine_may_decompose_otherwise(
    kind: str, init: str, models: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows, models / kind, train="lora", lora={"r": 2, "init": init})
    model, batch = train_and_reload(tmp_path, job)
    monkeypatch.setattr(torch.linalg, "svd", upside_down)
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda weight: tuple(-part for part in qr(weight.flip(0))))
    _, loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-5, atol=1e-5)


def test_pissa_begins_as_the_model_it_was(models: Path, rows: Path, tmp_path: Path) -> None:
    """What the adapters take over is gone from the frozen weights."""
    frozen = text_encoder(rows, models / "bert", train="frozen")
    pissa = text_encoder(rows, models / "bert", train="lora", lora={"r": 4, "init": "pissa"})
    ids = torch.tensor([[2, 4, 5, 3]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(pissa(**text)[0], frozen(**text)[0], rtol=1e-4, atol=1e-5)
    assert any(name.endswith("first_a") for name in trained_tensors(pissa))


def text_encoder(rows: Path, model: Path, **encoder: Any) -> nn.Module:
    job, _ = load_dataset(job_of(rows, model, **encoder))
    return FusedModel(job).eval().encoders["text"]


def tiny_bert() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=30, **sizes), add_pooling_layer=False)


def test_patterns_are_heard() -> None:
    adapted = with_adapters(tiny_bert(), Lora(r=2, rank_pattern={"query": 6}, alpha_pattern={"key": 3.0}))
    layers = {
        name.rsplit(".", 1)[-1]: part for name, part in adapted.named_modules() if hasattr(part, "lora_A")
    }
    assert layers["query"].r == {"default": 6}
    assert layers["value"].r == {"default": 2}
    assert layers["key"].scaling == {"default": 1.5}
    assert layers["value"].scaling == {"default": 8.0}


def transposed() -> Any:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2))


@pytest.mark.parametrize(
    ("options", "model", "problem"),
    [
        (Lora(rank_pattern={"qery": 2}), tiny_bert, "lora.rank_pattern: `qery` fits the name of no module"),
        (Lora(alpha_pattern={"qery": 2}), tiny_bert, "lora.alpha_pattern: `qery` fits the name of no module"),
        (Lora(modules_to_save=["classifier"]), tiny_bert, "lora.modules_to_save: no module's name ends with"),
        (
            Lora(init="olora"),
            transposed,
            "lora.init: olora does not know the transposed weights of a GPT2Model",
        ),
        (IA3(targets=["q_proj"]), tiny_bert, "ia3.targets: .*: no such modules in a BertModel"),
        (
            OFT(block_size=32),
            tiny_bert,
            "oft.block_size: 32 does not divide the 16 inputs of .*; write another",
        ),
        (
            OFT(layers=1),
            lambda: nn.Sequential(nn.Linear(2, 2)),
            "oft.layers: a Sequential has no list of layers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, model: Callable[[], Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        with_adapters(model(), options)


@pytest.mark.parametrize(
    "kind",
    [
        "frozen",
        "last:1",
        "gaussian",
        "ia3",
        "ia3 in the last layer",
        "oft",
        "dora",
        "pissa",
        "corda",
        "loftq",
    ],
)
def test_rounding_frozen_weights_once_changes_nothing_under_autocast(
    kind: str, models: Path, rows: Path
) -> None:
    def encoder() -> nn.Module:
        torch.manual_seed(0)
        return text_encoder(rows, models / "bert", **VARIANTS.get(kind, {"train": kind}))

    first, second = encoder(), encoder()
    round_frozen(second, "bf16")
    rounded = [p for p in second.parameters() if p.dtype == torch.bfloat16]
    assert bool(rounded) == (kind not in ("dora", "pissa", "corda"))
    assert not any(p.requires_grad for p in rounded)
    for one, other in zip(learned_under_autocast(first), learned_under_autocast(second), strict=True):
        assert torch.equal(one, other)


def learned_under_autocast(encoder: Any) -> list[torch.Tensor]:
    """What an encoder makes of a text, and the gradients of what it trains."""
    torch.manual_seed(0)
    ids = torch.tensor([[2, 4, 5, 3], [2, 6, 3, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        made, _ = encoder(input_ids=ids, attention_mask=(ids > 0).long())
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if trained:
        made.float().square().sum().backward()
    return [made, *(p.grad for p in trained)]
