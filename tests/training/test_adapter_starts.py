"""What adapters begin with, where training rows or rounding tell it: beside what PEFT makes of the same rows."""

from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch
from torch import nn
from variants import begin

from rayfuse.data.batches import Batch, EncoderBatch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import SampleMaker
from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders import build_encoder
from rayfuse.model.encoders.adapter_starts import ADAPTER, Eva, lora_layers, round_to_nf4, weight_of
from rayfuse.model.encoders.adapters import with_adapters
from rayfuse.model.fused import FusedModel
from rayfuse.spec.encoders import Lora
from rayfuse.spec.inputs import ImageInput
from rayfuse.train.adapters import _counts

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
    """A model in evaluation mode whose adapters have not seen any row yet, and a batch of rows for them to see."""
    encoder = {"type": "huggingface", "model": str(bert), "train": "lora"}
    encoder["lora"] = {"r": RANK, "init": init, **lora}
    job, dataset = load_dataset(tiny_jobs.tiny_job(rows, **{"inputs.text.encoder": encoder}))
    maker = SampleMaker(job.inputs, job.tasks)
    torch.manual_seed(1)
    model = FusedModel(job).eval()
    return model, collate([maker.from_row(row) for row in dataset.splits["train"][part]], maker.modalities)


def texts(batch: Batch) -> dict[str, torch.Tensor]:
    features = batch.inputs["text"].features
    assert features is not None
    return {name: features[name] for name in ("input_ids", "attention_mask")}


def plain(bert: Path) -> Any:
    from transformers import BertModel

    return BertModel.from_pretrained(bert, add_pooling_layer=False).eval()


def products(adapted: nn.Module) -> dict[str, torch.Tensor]:
    """What each adapter adds to its map, by the map's name in the plain model."""
    return {
        name.removeprefix("base_model.model."): layer.scaling[ADAPTER]
        * layer.lora_B[ADAPTER].weight.detach()
        @ layer.lora_A[ADAPTER].weight.detach()
        for name, layer in lora_layers(adapted).items()
    }


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_nothing_is_answered_otherwise_at_first(init: str, rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, init)
    before, adapters = model(batch), products(model.encoders["text"].model)  # type: ignore[arg-type]
    assert not any(product.any() for product in adapters.values())
    begin(model, [batch])
    after = model(batch)
    for name, answer in before.items():
        torch.testing.assert_close(after[name], answer, rtol=1e-4, atol=1e-5)
    moved = products(model.encoders["text"].model)  # type: ignore[arg-type]
    assert all(bool(product.any()) == (init != "eva") for product in moved.values())


def test_eva_finds_the_directions_that_peft_finds(rows: Path, bert: Path) -> None:
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    model, batch = built(rows, bert, "eva")
    begin(model, [batch])
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
        mine = layer.lora_A[ADAPTER].weight.detach()
        torch.testing.assert_close(mine @ mine.T, torch.eye(RANK), rtol=0, atol=1e-4)
        shared = torch.linalg.svdvals(mine @ theirs[name.removeprefix("base_model.model.")].float().T)
        assert shared.min() > 0.99, f"{name}: cosines between the two spaces {shared}"


def test_corda_takes_over_what_peft_takes_over(rows: Path, bert: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model, batch = built(rows, bert, "corda", slice(1))  # PEFT reads one text at a time
    begin(model, [batch])
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


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of PEFT's own
def test_lora_ga_goes_along_the_gradients_that_peft_finds(rows: Path, bert: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    model, batch = built(rows, bert, "lora_ga")
    whole, _ = built(rows, bert, "default")
    whole.encoders["text"].model = theirs = plain(bert)  # type: ignore[assignment]
    config = LoraConfig(
        r=RANK,
        target_modules=["query", "key", "value", "dense"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction="ArB2r", scale="unit"),
    )

    def step() -> None:
        theirs.eval()
        whole.total_loss(whole.losses(whole(batch), batch), batch).backward()

    preprocess_loraga(theirs, config, step)
    wanted = lora_layers(get_peft_model(theirs, config))
    begin(model, [batch])
    for name, layer in lora_layers(model.encoders["text"].model).items():  # type: ignore[arg-type]
        assert along(layer.lora_A[ADAPTER].weight, wanted[name].lora_A[ADAPTER].weight) > 0.999, name
        assert along(layer.lora_B[ADAPTER].weight.T, wanted[name].lora_B[ADAPTER].weight.T) > 0.99, name
        lengths = layer.lora_A[ADAPTER].weight.norm(dim=1) * 4 / layer.out_features**0.25
        torch.testing.assert_close(lengths, torch.ones(RANK))


def along(first: torch.Tensor, second: torch.Tensor) -> float:
    """The least cosine between rows, up to their signs."""
    return float(nn.functional.cosine_similarity(first, second).abs().min().detach())


def test_only_rows_that_have_the_input_are_seen(rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, "eva")
    empty = batch.subset(["image"])
    with pytest.raises(DataError, match=r"inputs.text: lora.init: .* sent 0 vectors .* raise lora.init_rows"):
        begin(model, [empty])
    begin(model, [empty, batch])
    alone, _ = built(rows, bert, "eva")
    begin(alone, [batch])
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(
            layer.lora_A[ADAPTER].weight, lora_layers(alone)[name].lora_A[ADAPTER].weight
        )


@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_rows_count_alike_however_they_are_shared_out(init: str, rows: Path, bert: Path) -> None:
    """Over batches here; over workers, what each saw is added in the same way. A batch encodes equal texts once."""
    found = []
    for parts in ([slice(12)], [slice(5), slice(5, 12)]):
        model, _ = built(rows, bert, init)
        begin(model, [built(rows, bert, init, numbers)[1] for numbers in parts])
        found.append(
            {name: layer.lora_A[ADAPTER].weight.detach() for name, layer in lora_layers(model).items()}
        )
    whole, shared = found
    for name, a in whole.items():
        torch.testing.assert_close(shared[name].T @ shared[name], a.T @ a, rtol=1e-3, atol=1e-4)


def test_frames_count_as_often_as_their_videos_and_padding_never(tmp_path: Path) -> None:
    source: Any = ImageInput.model_validate(
        {
            "type": "image",
            "column": "image",
            "encoder": {
                "type": "huggingface",
                "model": str(tiny_encoders.vit(tmp_path / "vit")),
                "train": "lora",
            },
        }
    )
    encoder = build_encoder(source)
    video = EncoderBatch({"frame_mask": torch.tensor([[1, 0], [1, 1]])}, torch.tensor([[1], [0], [-1], [1]]))
    counts = _counts(video)
    assert counts.tolist() == [1, 0, 2, 2]
    assert not _counts(EncoderBatch(video.features, torch.full((3, 1), -1))).any()
    frames = torch.randn(4, 3, 16, 16)

    def seen(pixels: torch.Tensor, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        start = Eva(encoder)
        start.look(lambda: encoder(pixel_values=pixels)[0], counts)
        return start.observed

    wanted = seen(frames[[0, 2, 2, 3, 3]], torch.ones(5))
    for name, observed in seen(frames, counts).items():
        torch.testing.assert_close(observed, wanted[name])


def test_a_loss_without_gradients_is_refused(rows: Path, bert: Path) -> None:
    model, batch = built(rows, bert, "lora_ga")
    with pytest.raises(DataError, match=r"inputs.text: lora.init: lora_ga: the loss .* does not depend"):
        begin(model, [batch.subset(["image"])])


def test_nf4_rounds_to_the_nearest_of_16_numbers() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 20)  # two whole blocks of 64, and a part of one
    rounded = round_to_nf4(weight)
    assert rounded.shape == weight.shape
    for block, original in zip(rounded.flatten().split(64), weight.flatten().split(64), strict=True):
        numbers = block / original.abs().max()
        assert len(numbers.unique()) <= 16
        assert numbers.abs().max() == 1
        levels = numbers.unique()
        nearest = (original[:, None] / original.abs().max() - levels).abs().argmin(dim=1)
        torch.testing.assert_close(levels[nearest], numbers)
    torch.testing.assert_close(round_to_nf4(rounded), rounded)
    assert not round_to_nf4(torch.zeros(3, 3)).any()


def test_loftq_repairs_what_rounding_loses_as_well_as_its_rank_can(rows: Path, bert: Path) -> None:
    original = {name: module for name, module in plain(bert).named_modules() if isinstance(module, nn.Linear)}
    adapted = built(rows, bert, "loftq", r=8)[0].encoders["text"].model
    repairs = products(adapted)  # type: ignore[arg-type]
    for name, layer in lora_layers(adapted).items():  # type: ignore[arg-type]
        place = name.removeprefix("base_model.model.")
        weight = original[place].weight.detach()
        lost = weight - round_to_nf4(weight)
        torch.testing.assert_close(weight_of(layer), round_to_nf4(weight))
        values = torch.linalg.svdvals(lost)
        left = (lost - repairs[place]).norm()
        torch.testing.assert_close(left, values[8:].norm(), rtol=1e-3, atol=1e-5)  # Eckart and Young, 1936


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            Lora(r=9, init="lora_ga"),
            r"lora.r: 9, but lora_ga needs 18 singular vectors of .*, which has 16; write 8",
        ),
        (
            Lora(r=17, init="corda"),
            r"lora.r: 17, but corda needs 17 singular vectors of .*; write 16 or less",
        ),
        (
            Lora(init="eva", targets=["word_embeddings"]),
            r"lora.init: eva is for linear maps, and .*word_embeddings is a Embedding",
        ),
    ],
)
def test_what_cannot_begin_so_is_refused(options: Lora, problem: str, bert: Path) -> None:
    with pytest.raises(SpecError, match=problem):
        with_adapters(plain(bert), options)
