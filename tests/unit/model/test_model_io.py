"""Model folders are self-contained, contain nothing executable, and give errors if damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_jobs
import torch
from safetensors.torch import load_file, save_file

from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError
from rayfuse.model.fused import FusedModel, trainable_state_dict
from rayfuse.model.model_io import load_job, load_model, load_weights, save_model
from rayfuse.model.predictor import Predictor

ENDINGS = {".json", ".safetensors", ".txt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jobs.make_model_folder(tmp_path_factory.mktemp("model"), steps=5)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def pretrained_job(folder: Path, train: str) -> Any:
    """Return a tiny job with a tiny BERT whose folder contains files that must not be copied."""
    bert = tiny_encoders.bert(folder / "bert")
    (bert / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (bert / "training_args.pkl").write_bytes(b"\x80\x04.")
    (bert / "modeling_own.py").write_text("raise SystemExit\n")
    (bert / ".git").mkdir()
    (bert / ".git" / "config.json").write_text("{}")
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text("{}")
    encoder = {"type": "huggingface", "model": str(bert), "train": train, "lora": {"r": 2}}
    return tiny_jobs.tiny_job(folder, **{"inputs.text.encoder": encoder})


@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_saved_model_gives_equal_predictions(train: str, tmp_path: Path) -> None:
    job, dataset = load_dataset(pretrained_job(tmp_path / "data", train))
    torch.manual_seed(0)
    model = FusedModel(job)
    with torch.no_grad():
        for tensor in trainable_state_dict(model).values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    save_model(tmp_path / "model", job, trainable_state_dict(model), {"run": "r1"})
    shutil.rmtree(tmp_path / "data" / "bert")
    moved = Path(shutil.move(tmp_path / "model", tmp_path / "moved"))

    back, loaded = load_model(moved)
    assert not loaded.training
    assert back.inputs["text"].encoder.model == str(moved / "encoders/text")
    assert back.tasks == job.tasks
    assert load_job(moved)[1] == {"run": "r1"}
    from rayfuse.data.collate import collate

    preprocessor = Preprocessor(back.inputs, back.tasks)
    batch = collate([preprocessor.from_row(row) for row in dataset.splits["test"]], preprocessor.modalities)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(batch).tasks["answer"], model.eval()(batch).tasks["answer"], rtol=0, atol=0
        )
    stored = {path.relative_to(moved).as_posix() for path in moved.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in stored} <= ENDINGS
    assert "encoders/text/1_Pooling/config.json" in stored
    assert not any(".git" in name for name in stored)
    weights = load_file(moved / "weights.safetensors")
    assert any(name.startswith("encoders.text.") for name in weights) == (train != "frozen")


def test_predictions_do_not_depend_on_the_batch(folder: Path) -> None:
    predictor = Predictor(folder, device="cpu")
    requests = [
        {"text": "which colour is it?"},
        {
            "text": "which colour is this?",
            "image": tiny_jobs.write_image(folder.parent / "a.png").read_bytes(),
        },
    ]
    together = predictor.predict(requests)
    for request, prediction in zip(requests, together, strict=True):
        [alone] = predictor.predict([request])
        scores = prediction["outputs"]["answer"]["scores"]
        assert alone["outputs"]["answer"]["scores"] == pytest.approx(scores, abs=1e-6)


def change_spec(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "rayfuse.json").read_text())
    change(content)
    (folder / "rayfuse.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "rayfuse.json").unlink(), "not a model folder: .*No such file"),
        (lambda f: (f / "rayfuse.json").write_text("{"), "not a model folder: "),
        (lambda f: (f / "rayfuse.json").write_bytes(b"\xff\xfe"), "not a model folder: "),
        (
            lambda f: (f / "rayfuse.json").write_text("[]"),
            "model format None is not supported; this version reads 1",
        ),
        (
            lambda f: change_spec(f, lambda c: c.update(format=99)),
            "model format 99 is not supported; this version reads 1",
        ),
        (lambda f: change_spec(f, lambda c: c.pop("job")), "invalid job in rayfuse.json: "),
        (
            lambda f: change_spec(f, lambda c: c["job"].pop("inputs")),
            "(?s)invalid job in rayfuse.json: .*inputs: missing",
        ),
        (
            lambda f: (f / "weights.safetensors").unlink(),
            "weights.safetensors: missing or incomplete safetensors file",
        ),
        (
            lambda f: cut(f / "weights.safetensors"),
            "weights.safetensors: missing or incomplete safetensors file: .*again",
        ),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), "missing or incomplete safetensors file"),
        (
            lambda f: lose(f / "weights.safetensors"),
            "1 tensors are missing, such as tasks.answer.linear.bias",
        ),
        (
            lambda f: reshape(f / "weights.safetensors"),
            "the weights do not match this model: .*size mismatch",
        ),
    ],
)
def test_damaged_folders(damage: Callable[[Path], Any], problem: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(DataError, match=problem):
        load_model(copy)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def lose(file: Path) -> None:
    tensors = load_file(file)
    del tensors["tasks.answer.linear.bias"]
    save_file(tensors, file)


def reshape(file: Path) -> None:
    tensors = load_file(file)
    tensors["tasks.answer.linear.bias"] = torch.zeros(99)
    save_file(tensors, file)


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    torch.save({"a": torch.zeros(1)}, copy / "weights.safetensors")
    with pytest.raises(DataError, match="missing or incomplete safetensors file"):
        load_model(copy)


def test_weights_of_another_model_are_rejected(folder: Path) -> None:
    _, model = load_model(folder)
    tensors = {**trainable_state_dict(model), "extra": torch.zeros(1)}
    with pytest.raises(DataError, match="do not match this model: 1 tensors are unexpected, such as extra"):
        load_weights(model, tensors)


def test_missing_encoder_folder(tmp_path: Path) -> None:
    job, _ = load_dataset(pretrained_job(tmp_path / "data", "frozen"))
    save_model(tmp_path / "model", job, trainable_state_dict(FusedModel(job)), {})
    shutil.rmtree(tmp_path / "model/encoders")
    with pytest.raises(DataError, match="encoders/text: cannot load a Hugging Face model: folder not found"):
        load_model(tmp_path / "model")
