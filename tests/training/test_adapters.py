"""Training and reloading of adapters of every type and initialization."""

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
from rayfuse.model.encoders.adapters import apply_adapters
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import load_model
from rayfuse.spec.encoders import IA3AdapterConfig, LoraAdapterConfig, OFTAdapterConfig
from rayfuse.training.precision import cast_frozen_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "gaussian"}},
    "orthogonal": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "orthogonal"}},
    "olora": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "olora"}},
    "mica": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "mica"}},
    "pissa": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "pissa"}},
    "pissa_niter_2": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "pissa_niter_2"}},
    "eva": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "eva"}},
    "corda": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "corda"}},
    "lora_ga": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "lora_ga"}},
    "loftq": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "loftq"}},
    "corda and dora": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "corda", "use_dora": True}},
    "patterns": {
        "train": "lora",
        "lora": {"r": 2, "rank_pattern": {"query": 4}, "alpha_pattern": {r"layer\.1\..*key": 1}},
    },
    "dora": {"train": "lora", "lora": {"r": 2, "use_dora": True}},
    "rslora": {"train": "lora", "lora": {"r": 2, "use_rslora": True}},
    "pissa and dora": {"train": "lora", "lora": {"r": 2, "init_lora_weights": "pissa", "use_dora": True}},
    "modules_to_save": {"train": "lora", "lora": {"r": 2, "modules_to_save": ["LayerNorm"]}},
    "ia3": {"train": "ia3"},
    "ia3 in the last layer": {
        "train": "ia3",
        "ia3": {"last_n_layers": 1, "feedforward_modules": ["output.dense"]},
    },
    "oft": {"train": "oft", "oft": {"oft_block_size": 8}},
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
def test_every_adapter_trains_and_reloads(variant: str, models: Path, rows: Path, tmp_path: Path) -> None:
    model, _ = train_and_reload(tmp_path, job_of(rows, models / "bert", **VARIANTS[variant]))
    trained = {name for name, p in model.encoders["text"].named_parameters() if p.requires_grad}
    words = ("lora_", "ia3_", "oft_", "modules_to_save")
    assert trained
    assert all(any(word in name for word in words) for name in trained)


@pytest.mark.parametrize("init", ["default", "pissa", "eva", "corda", "lora_ga", "loftq"])
def test_transposed_linear_layers(init: str, models: Path, rows: Path, tmp_path: Path) -> None:
    train_and_reload(
        tmp_path,
        job_of(rows, models / "gpt2", train="lora", lora={"r": 2, "init_lora_weights": init}, pool="last"),
    )


def permuted_svd(weight: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    """Compute a singular value decomposition as on another machine: other signs, and a pair of vectors exchanged."""
    u, s, v = _SVD(weight, full_matrices=False)
    order = [0, 2, 1, *range(3, len(s))]
    return -u[:, order], s[order], -v[order]


_SVD = torch.linalg.svd


@pytest.mark.parametrize(
    ("kind", "init"), [("bert", "pissa"), ("bert", "mica"), ("bert", "olora"), ("gpt2", "pissa")]
)
def test_loading_does_not_depend_on_recomputed_decompositions(
    kind: str, init: str, models: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows, models / kind, train="lora", lora={"r": 2, "init_lora_weights": init})
    model, batch = train_and_reload(tmp_path, job)
    monkeypatch.setattr(torch.linalg, "svd", permuted_svd)
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda weight: tuple(-part for part in qr(weight.flip(0))))
    _, loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-5, atol=1e-5)


def test_pissa_preserves_initial_outputs(models: Path, rows: Path, tmp_path: Path) -> None:
    """The frozen weights lack what the adapters contain."""
    frozen = text_encoder(rows, models / "bert", train="frozen")
    pissa = text_encoder(rows, models / "bert", train="lora", lora={"r": 4, "init_lora_weights": "pissa"})
    ids = torch.tensor([[2, 4, 5, 3]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(pissa(**text)[0], frozen(**text)[0], rtol=1e-4, atol=1e-5)
    assert any(name.endswith("initial_a") for name in trainable_state_dict(pissa))


def text_encoder(rows: Path, model: Path, **encoder: Any) -> nn.Module:
    job, _ = load_dataset(job_of(rows, model, **encoder))
    return FusedModel(job).eval().encoders["text"]


def tiny_bert() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=30, **sizes), add_pooling_layer=False)


def test_rank_and_alpha_patterns_apply() -> None:
    adapted = apply_adapters(
        tiny_bert(), LoraAdapterConfig(r=2, rank_pattern={"query": 6}, alpha_pattern={"key": 3.0})
    )
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
        (
            LoraAdapterConfig(rank_pattern={"qery": 2}),
            tiny_bert,
            "lora.rank_pattern: `qery` matches no module",
        ),
        (
            LoraAdapterConfig(alpha_pattern={"qery": 2}),
            tiny_bert,
            "lora.alpha_pattern: `qery` matches no module",
        ),
        (
            LoraAdapterConfig(modules_to_save=["classifier"]),
            tiny_bert,
            "lora.modules_to_save: `classifier` matches the end of no module's name",
        ),
        (
            LoraAdapterConfig(init_lora_weights="olora"),
            transposed,
            "lora.init_lora_weights: olora does not support the transposed weights of a GPT2Model",
        ),
        (
            IA3AdapterConfig(target_modules=["q_proj"]),
            tiny_bert,
            "ia3.target_modules: .*: no such modules in a BertModel",
        ),
        (
            OFTAdapterConfig(oft_block_size=32),
            tiny_bert,
            "oft.oft_block_size: 32 does not divide the 16 inputs of .*; use a divisor such as",
        ),
        (
            OFTAdapterConfig(last_n_layers=1),
            lambda: nn.Sequential(nn.Linear(2, 2)),
            "oft.last_n_layers: a Sequential has no list of layers",
        ),
    ],
)
def test_options_that_do_not_fit_the_model_are_rejected(
    options: Any, model: Callable[[], Any], problem: str
) -> None:
    with pytest.raises(SpecError, match=problem):
        apply_adapters(model(), options)


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
def test_casting_frozen_weights_preserves_results_under_autocast(kind: str, models: Path, rows: Path) -> None:
    def encoder() -> nn.Module:
        torch.manual_seed(0)
        return text_encoder(rows, models / "bert", **VARIANTS.get(kind, {"train": kind}))

    first, second = encoder(), encoder()
    cast_frozen_weights(second, "bf16")
    rounded = [p for p in second.parameters() if p.dtype == torch.bfloat16]
    assert bool(rounded) == (kind not in ("dora", "pissa", "corda"))
    assert not any(p.requires_grad for p in rounded)
    for one, other in zip(outputs_and_gradients(first), outputs_and_gradients(second), strict=True):
        assert torch.equal(one, other)


def outputs_and_gradients(encoder: Any) -> list[torch.Tensor]:
    """Return the outputs of an encoder for texts and the gradients of its trained parameters."""
    torch.manual_seed(0)
    ids = torch.tensor([[2, 4, 5, 3], [2, 6, 3, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = encoder(input_ids=ids, attention_mask=(ids > 0).long())
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if trained:
        outputs.float().square().sum().backward()
    return [outputs, *(p.grad for p in trained)]
