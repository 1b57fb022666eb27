"""Outputs of the model: absent inputs change nothing, and samples of a batch are independent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.model.fused import FusedModel, trainable_parameters, trainable_state_dict
from rayfuse.model.outputs import ModelOutput
from rayfuse.spec.fusion import ConcatFusionConfig, TransformerFusionConfig

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {
        "tasks.brightness": {"type": "regression", "weight": 0.5},
        "inputs.text.optional": True,
        "train.modality_dropout": 0.1,
    }
    return load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("fused"), audio=True, **overrides))


@pytest.fixture(scope="module")
def samples(loaded: Any) -> list[Sample]:
    job, dataset = loaded
    preprocessor = Preprocessor(job.inputs, job.tasks)
    return [preprocessor.from_row(row) for row in dataset.splits["train"]][:12]


@pytest.fixture(scope="module", params=["concat", "transformer"])
def job(request: pytest.FixtureRequest, loaded: Any) -> Any:
    fusion = (
        ConcatFusionConfig(type="concat", hidden=16, layers=2)
        if request.param == "concat"
        else TransformerFusionConfig(type="transformer", layers=2, heads=2)
    )
    return loaded[0].model_copy(update={"fusion": fusion})


@pytest.fixture(scope="module")
def model(job: Any) -> FusedModel:
    """Build a model with placeholders other than zero, their initial value."""
    torch.manual_seed(0)
    model = FusedModel(job)
    for alignment in model.alignment.values():
        torch.nn.init.normal_(alignment.placeholder)
    return model.eval()


def stack(job: Any, samples: Sequence[Sample], **options: bool) -> Batch:
    return collate(samples, Preprocessor(job.inputs).modalities, **options)


def only(sample: Sample, *names: str) -> Sample:
    kept = {name: sample.features[name] for name in names if name in sample.features}
    return Sample(kept, sample.keys, sample.targets)


def assert_same(first: ModelOutput, second: ModelOutput) -> None:
    assert first.tasks.keys() == second.tasks.keys()
    for name, tensor in first.tasks.items():
        torch.testing.assert_close(tensor, second.tasks[name], **CLOSE)


def row_of(output: ModelOutput, row: int) -> ModelOutput:
    return ModelOutput({name: tensor[row : row + 1] for name, tensor in output.tasks.items()})


@torch.no_grad()
def test_samples_of_a_batch_are_independent(job: Any, model: FusedModel, samples: list[Sample]) -> None:
    together = model(stack(job, samples))
    again = model(stack(job, [*reversed(samples), *samples]))
    for i, sample in enumerate(samples):
        alone = model(stack(job, [sample]))
        assert_same(alone, row_of(together, i))
        assert_same(alone, row_of(again, len(samples) - 1 - i))


@torch.no_grad()
def test_dummies_and_fillers_change_no_output(job: Any, model: FusedModel, samples: list[Sample]) -> None:
    texts = [only(sample, "text") for sample in samples]
    assert_same(model(stack(job, texts)), model(stack(job, texts, add_dummies=True)))
    assert model(stack(job, [])).tasks["answer"].shape == (1, 6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "audio", "text"])
def test_the_content_of_an_absent_input_changes_nothing(
    name: str, job: Any, model: FusedModel, samples: list[Sample]
) -> None:
    batch, changed = stack(job, samples), stack(job, samples)
    features = changed.inputs[name].features
    assert features is not None
    features.update({key: tensor.flip(0) for key, tensor in features.items()})
    assert not torch.allclose(model(batch).tasks["answer"], model(changed).tasks["answer"], **CLOSE)
    others = [other for other in job.inputs if other != name]
    for kept in (others, others[:1], []):
        assert_same(model(batch.select_inputs(kept)), model(changed.select_inputs(kept)))


@torch.no_grad()
def test_subsets_match_samples_without_the_other_inputs(
    job: Any, model: FusedModel, samples: list[Sample]
) -> None:
    subsets = [("image", "text", "audio"), ("image", "audio"), ("text",), ("audio",)]
    for chosen, outputs in zip(subsets, model(stack(job, samples), subsets), strict=True):
        assert_same(outputs, model(stack(job, [only(sample, *chosen) for sample in samples])))
    assert_same(model(stack(job, samples), subsets)[0], model(stack(job, samples)))


@torch.no_grad()
def test_every_input_and_its_absence_change_the_output(
    job: Any, model: FusedModel, samples: list[Sample]
) -> None:
    full = next(sample for sample in samples if len(sample.features) == 3)
    answers = [
        model(stack(job, [only(full, *names)])).tasks["answer"]
        for names in (("image", "text", "audio"), ("image", "text"), ("text", "audio"), ("text",), ())
    ]
    for i, first in enumerate(answers):
        for second in answers[i + 1 :]:
            assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("names", [("image", "text", "audio"), ("text",), ()])
def test_gradient_reaches_every_trainable_parameter(
    names: tuple[str, ...], job: Any, samples: list[Sample]
) -> None:
    """Include batches where no row has an input: a rank that skips an encoder would block the others."""
    model = FusedModel(job).train()
    batch = stack(job, [only(sample, *names) for sample in samples], add_dummies=True)
    model.total_loss(model.losses(model(batch), batch), batch).backward()
    without = [name for name, parameter in trainable_parameters(model).items() if parameter.grad is None]
    assert not without
    for name, parameter in model.encoders.named_parameters():
        assert bool(parameter.grad.any()) <= (name.partition(".")[0] in names)
        assert torch.isfinite(parameter.grad).all()


def test_a_filler_has_no_gradient(job: Any) -> None:
    model = FusedModel(job).train()
    batch = stack(job, [], add_dummies=True)
    losses = model.losses(model(batch), batch)
    assert {name: loss.item() for name, loss in losses.tasks.items()} == {"answer": 0, "brightness": 0}
    model.total_loss(losses, batch).backward()
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None, name
        assert not parameter.grad.any()


@torch.no_grad()
def test_losses_are_sums_over_samples_weighted_by_task(
    job: Any, model: FusedModel, samples: list[Sample]
) -> None:
    batch = stack(job, samples)
    outputs = model(batch)
    losses = model.losses(outputs, batch)
    wanted = torch.nn.functional.cross_entropy(
        outputs.tasks["answer"], batch.targets["answer"].long(), reduction="sum"
    )
    torch.testing.assert_close(losses.tasks["answer"], wanted)
    torch.testing.assert_close(
        model.total_loss(losses, batch), losses.tasks["answer"] + 0.5 * losses.tasks["brightness"]
    )
    half = Batch(batch.inputs, batch.targets, (torch.arange(batch.batch_size) < 6).float())
    first = stack(job, samples[:6])
    for name, loss in model.losses(model(half), half).tasks.items():
        torch.testing.assert_close(loss, model.losses(model(first), first).tasks[name], rtol=1e-4, atol=1e-4)


def test_trainable_state_by_name(job: Any, model: FusedModel) -> None:
    names = set(trainable_state_dict(model))
    assert names == {*dict(model.named_parameters()), "tasks.answer.temperature"}
    assert "encoders.image.layers.0.weight" in names
    assert "tasks.answer.linear.bias" in names


def test_the_seed_decides_the_initial_weights(job: Any) -> None:
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        return FusedModel(job).state_dict()

    for name, tensor in weights().items():
        torch.testing.assert_close(tensor, weights()[name], rtol=0, atol=0, msg=name)


def test_tiny_model_learns_the_labels(tmp_path: Path) -> None:
    from rayfuse.model.predictor import Predictor

    folder = tiny_jobs.make_model_folder(tmp_path)
    predictor = Predictor(folder, device="cpu")
    for colour in tiny_jobs.COLOURS:
        value = tiny_jobs.write_image(tmp_path / "image.png", colour).read_bytes()
        [answer] = predictor.predict([{"image": value, "text": "which colour is it?"}])
        assert answer["outputs"]["answer"]["label"] == colour
        assert answer["inputs_used"] == ["image", "text"]
    [answer] = predictor.predict([{"text": "which colour is it?"}])
    assert answer["outputs"]["answer"]["label"] == "unknown"
    assert answer["inputs_used"] == ["text"]
    assert sum(answer["outputs"]["answer"]["scores"].values()) == pytest.approx(1)
    assert predictor.predict_samples([]) == []
