"""Initialization of LoRA from rows or quantization errors, compared with PEFT on the same rows."""

from pathlib import Path
from typing import Any

import kinds_of_input
import pytest
import tiny_encoders
import tiny_jobs
import torch
from torch import nn
from variants import init_adapters

from rayfuse.data.collate import Batch, EncoderBatch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders.adapters import apply_adapters
from rayfuse.model.encoders.lora_init import (
    ADAPTER_NAME,
    base_weight,
    fake_quantize_nf4,
    lora_layers,
)
from rayfuse.model.fused import FusedModel
from rayfuse.spec.encoders import LoraAdapterConfig

RANK = 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tiny_encoders.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def built(
    rows: Path, bert: Path, init: str, part: slice = slice(12), **lora: Any
) -> tuple[FusedModel, Batch]:
    """Build a model in evaluation mode without initialized adapters, and a batch of rows."""
    encoder = {"type": "huggingface", "model": str(bert), "train": "lora"}
    encoder["lora"] = {"r": RANK, "init_lora_weights": init, **lora}
    job, dataset = load_dataset(tiny_jobs.tiny_job(rows, **{"inputs.text.encoder": encoder}))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    torch.manual_seed(1)
    model = FusedModel(job).eval()
    return model, collate(
        [preprocessor.from_row(row) for row in dataset.splits["train"][part]], preprocessor.modalities
    )


def texts(batch: Batch) -> dict[str, torch.Tensor]:
    features = batch.inputs["text"].features
    assert features is not None
    return {name: features[name] for name in ("input_ids", "attention_mask")}


def plain(bert: Path) -> Any:
    from transformers import BertModel

    return BertModel.from_pretrained(bert, add_pooling_layer=False).eval()


def products(adapted: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weight update of each adapter, by the layer's name in the plain model."""
    return {
        name.removeprefix("base_model.model."): layer.scaling[ADAPTER_NAME]
        * layer.lora_B[ADAPTER_NAME].weight.detach()
        @ layer.lora_A[ADAPTER_NAME].weight.detach()
        for name, layer in lora_layers(adapted).items()
    }


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_initial_outputs_equal_those_of_the_frozen_model(init: str, rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, init)
    before, adapters = model(batch), products(model.encoders["text"].model)  # type: ignore[arg-type]
    assert not any(product.any() for product in adapters.values())
    init_adapters(model, [batch])
    after = model(batch)
    for name, answer in before.tasks.items():
        torch.testing.assert_close(after.tasks[name], answer, rtol=1e-4, atol=1e-5)
    moved = products(model.encoders["text"].model)  # type: ignore[arg-type]
    assert all(bool(product.any()) == (init != "eva") for product in moved.values())


def test_eva_spans_the_same_subspace_as_peft(rows: Path, bert: Path) -> None:
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    model, batch = built(rows, bert, "eva")
    init_adapters(model, [batch])
    config = LoraConfig(
        r=RANK,
        target_modules=["query", "key", "value", "dense"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    theirs = get_eva_state_dict(plain(bert), [texts(batch)] * 2, config, show_progress_bar=False)
    layers = lora_layers(model.encoders["text"].model)  # type: ignore[arg-type]
    assert len(layers) == len(theirs) == 12
    for name, layer in layers.items():
        a = layer.lora_A[ADAPTER_NAME].weight.detach()
        torch.testing.assert_close(a @ a.T, torch.eye(RANK), rtol=0, atol=1e-4)
        cosines = torch.linalg.svdvals(a @ theirs[name.removeprefix("base_model.model.")].float().T)
        assert cosines.min() > 0.99, f"{name}: cosines between the two subspaces: {cosines}"


def test_corda_equals_peft_for_a_single_sample(rows: Path, bert: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model, batch = built(rows, bert, "corda", slice(1))  # PEFT reads one text at a time
    init_adapters(model, [batch])
    config = LoraConfig(
        r=RANK,
        lora_alpha=16,
        target_modules=["query", "key", "value", "dense"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )
    theirs = plain(bert)
    preprocess_corda(theirs, config, run_model=lambda: theirs(**texts(batch)))
    wanted = products(get_peft_model(theirs, config))
    for name, product in products(model.encoders["text"].model).items():  # type: ignore[arg-type]
        torch.testing.assert_close(product, wanted[name], rtol=1e-2, atol=1e-3 * float(wanted[name].norm()))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # raised by PEFT
def test_lora_ga_has_the_directions_of_peft_and_the_scale_of_the_paper(rows: Path, bert: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    model, batch = built(rows, bert, "lora_ga")
    reference, _ = built(rows, bert, "default")
    reference.encoders["text"].model = theirs = plain(bert)  # type: ignore[assignment]
    config = LoraConfig(
        r=RANK,
        target_modules=["query", "key", "value", "dense"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction="ArB2r", scale="unit"),
    )

    def step() -> None:
        theirs.eval()
        reference.total_loss(reference.losses(reference(batch), batch), batch).backward()

    preprocess_loraga(theirs, config, step)
    wanted = lora_layers(get_peft_model(theirs, config))
    init_adapters(model, [batch])
    for name, layer in lora_layers(model.encoders["text"].model).items():  # type: ignore[arg-type]
        assert along(layer.lora_A[ADAPTER_NAME].weight, wanted[name].lora_A[ADAPTER_NAME].weight) > 0.999, (
            name
        )
        assert (
            along(layer.lora_B[ADAPTER_NAME].weight.T, wanted[name].lora_B[ADAPTER_NAME].weight.T) > 0.99
        ), name
        lengths = layer.lora_A[ADAPTER_NAME].weight.norm(dim=1) * 4 / layer.out_features**0.25
        torch.testing.assert_close(lengths, torch.ones(RANK))


def along(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the minimum cosine between rows, up to their signs."""
    return float(nn.functional.cosine_similarity(first, second).abs().min().detach())


def test_rows_without_the_input_are_ignored(rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, "eva")
    empty = batch.select_inputs(["image"])
    with pytest.raises(
        DataError,
        match=r"inputs.text: lora.init_lora_weights: .* give 0 input vectors .* raise lora.init_samples",
    ):
        init_adapters(model, [empty])
    init_adapters(model, [empty, batch])
    alone, _ = built(rows, bert, "eva")
    init_adapters(alone, [batch])
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(
            layer.lora_A[ADAPTER_NAME].weight, lora_layers(alone)[name].lora_A[ADAPTER_NAME].weight
        )


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_result_does_not_depend_on_batches(init: str, rows: Path, bert: Path) -> None:
    """Statistics of workers are added like those of batches. A batch encodes equal texts once."""
    found = []
    for parts in ([slice(12)], [slice(5), slice(5, 12)]):
        model, _ = built(rows, bert, init)
        init_adapters(model, [built(rows, bert, init, numbers)[1] for numbers in parts])
        found.append(
            {name: layer.lora_A[ADAPTER_NAME].weight.detach() for name, layer in lora_layers(model).items()}
        )
    whole, split = found
    for name, a in whole.items():
        torch.testing.assert_close(split[name].T @ split[name], a.T @ a, rtol=1e-3, atol=1e-4)


def video_model(folder: Path) -> tuple[FusedModel, Batch]:
    """Build a model with EVA adapters on the frames of a video, and a batch of two videos of three and two frames."""
    encoder = {"type": "huggingface", "model": str(folder / "vit"), "train": "lora"}
    encoder["lora"] = {"r": 2, "init_lora_weights": "eva"}
    frames = {"type": "frames", "encoder": encoder}
    clip = {"type": "video", "num_frames": 3, "size": 16, "encoder": frames}
    rows = [row for row in kinds_of_input.make_rows(folder) if row["clip"]]
    job, _ = load_dataset(kinds_of_input.make_job(folder, rows, inputs={"clip": clip}))
    torch.manual_seed(0)
    features = {
        "frames": torch.rand(2, 3, 3, 16, 16) * 2 - 1,
        "frame_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "frame_times": torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.1, 0.0]]),
    }
    part = EncoderBatch(features, torch.tensor([[0], [1]]))
    targets = {"answer": torch.tensor([0.0, 1.0])}
    return FusedModel(job).eval(), Batch({"clip": part}, targets, torch.ones(2))


def initial_subspaces(model: FusedModel, batches: list[Batch]) -> dict[str, torch.Tensor]:
    init_adapters(model, batches)
    layers = lora_layers(model).items()
    matrices = {name: layer.lora_A[ADAPTER_NAME].weight.detach() for name, layer in layers}
    return {name: a.T @ a for name, a in matrices.items()}


def test_frames_are_weighted_by_their_videos_and_padding_is_ignored(tmp_path: Path) -> None:
    tiny_encoders.vit(tmp_path / "vit")
    model, batch = video_model(tmp_path)
    features = batch.inputs["clip"].features
    assert features is not None
    twice = EncoderBatch(features, torch.tensor([[0], [1], [1]]))
    repeated = Batch({"clip": twice}, {"answer": torch.tensor([0.0, 1.0, 1.0])}, torch.ones(3))
    weighted = initial_subspaces(model, [repeated])

    padding = features["frames"].clone()
    padding[1, 2] = 100.0
    second = EncoderBatch({**features, "frames": padding}, torch.tensor([[1]]))
    single = Batch({"clip": second}, {"answer": torch.tensor([1.0])}, torch.ones(1))
    for name, subspace in initial_subspaces(model, [batch, single]).items():
        torch.testing.assert_close(weighted[name], subspace, rtol=1e-3, atol=1e-4)
    unweighted = initial_subspaces(model, [batch])
    assert any(
        not torch.allclose(weighted[name], subspace, atol=1e-2) for name, subspace in unweighted.items()
    )


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_inputs_that_are_not_finite_are_rejected(init: str, rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, init)
    with torch.no_grad():
        model.get_parameter("encoders.text.model.base_model.model.embeddings.LayerNorm.weight")[0] = torch.inf
    with pytest.raises(DataError, match=r"inputs.text: lora.init_lora_weights: .* NaN or infinite inputs"):
        init_adapters(model, [batch])


def test_loss_without_gradients_is_rejected(rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, "lora_ga")
    with pytest.raises(
        DataError, match=r"inputs.text: lora.init_lora_weights: lora_ga: the loss .* does not depend"
    ):
        init_adapters(model, [batch.select_inputs(["image"])])


def test_nf4_rounds_to_the_nearest_of_16_levels() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 20)  # two full blocks of 64, and a partial one
    quantized = fake_quantize_nf4(weight)
    assert quantized.shape == weight.shape
    for block, original in zip(quantized.flatten().split(64), weight.flatten().split(64), strict=True):
        numbers = block / original.abs().max()
        assert len(numbers.unique()) <= 16
        assert numbers.abs().max() == 1
        levels = numbers.unique()
        nearest = (original[:, None] / original.abs().max() - levels).abs().argmin(dim=1)
        torch.testing.assert_close(levels[nearest], numbers)
    torch.testing.assert_close(fake_quantize_nf4(quantized), quantized)
    assert not fake_quantize_nf4(torch.zeros(3, 3)).any()


def test_loftq_is_the_best_correction_of_its_rank(rows: Path, bert: Path) -> None:
    original = {name: module for name, module in plain(bert).named_modules() if isinstance(module, nn.Linear)}
    adapted = built(rows, bert, "loftq", r=8)[0].encoders["text"].model
    corrections = products(adapted)  # type: ignore[arg-type]
    for name, layer in lora_layers(adapted).items():  # type: ignore[arg-type]
        plain_name = name.removeprefix("base_model.model.")
        weight = original[plain_name].weight.detach()
        error = weight - fake_quantize_nf4(weight)
        torch.testing.assert_close(base_weight(layer), fake_quantize_nf4(weight))
        values = torch.linalg.svdvals(error)
        remaining = (error - corrections[plain_name]).norm()
        torch.testing.assert_close(
            remaining, values[8:].norm(), rtol=1e-3, atol=1e-5
        )  # Eckart and Young, 1936


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            LoraAdapterConfig(r=9, init_lora_weights="lora_ga"),
            r"lora.r: 9, but lora_ga needs 18 singular vectors of .*, which has 16; use 8",
        ),
        (
            LoraAdapterConfig(r=17, init_lora_weights="corda"),
            r"lora.r: 17, but corda needs 17 singular vectors of .*; use 16 or less",
        ),
        (
            LoraAdapterConfig(init_lora_weights="eva", target_modules=["word_embeddings"]),
            r"lora.init_lora_weights: eva is for linear layers, and .*word_embeddings is of type Embedding",
        ),
    ],
)
def test_unsupported_initializations_are_rejected(
    options: LoraAdapterConfig, problem: str, bert: Path
) -> None:
    with pytest.raises(SpecError, match=problem):
        apply_adapters(plain(bert), options)
