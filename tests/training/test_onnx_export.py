"""Models as ONNX graphs: the predictions of onnxruntime, with all inputs and without each."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kinds_of_input
import numpy as np
import onnxruntime
import pytest
import tiny_encoders
import torch
from kinds_of_input import SMALL_ENCODERS, make_job, make_rows

import rayfuse
from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import SpecError
from rayfuse.model.fused import FusedModel, task_heads, trainable_state_dict
from rayfuse.model.model_io import load_model, save_model
from rayfuse.model.predictor import Predictor
from rayfuse.spec.job import Job

TASKS = {
    "answer": {"type": "classification", "column": "label"},
    "years": {"type": "regression", "column": "years"},
    "grade": {"type": "ordinal", "column": "grade", "classes": ["low", "middle", "high"]},
}


@pytest.fixture(autouse=True)
def _without_traces(caplog: pytest.LogCaptureFixture) -> None:
    """Keep pytest from capturing torch's debug log of every traced operation."""
    caplog.set_level(logging.WARNING, "torch.__trace")


def save_job(folder: Path, inputs: Sequence[str], tasks: dict[str, Any], **overrides: Any) -> list[Sample]:
    """Save an untrained model of some of the inputs as FOLDER/model, and return the samples of its rows."""
    folder.mkdir(exist_ok=True)
    rows = [
        {**row, "years": float(number), "grade": ["low", "middle", "high"][number % 3]}
        for number, row in enumerate(make_rows(folder))
    ]
    encoders = {f"inputs.{name}.encoder": SMALL_ENCODERS[name] for name in SMALL_ENCODERS}
    chosen = {name: kinds_of_input.inputs()[name] for name in inputs}
    job = make_job(folder, rows, inputs=chosen, tasks=tasks)
    job = job.override(
        **{key: value for key, value in encoders.items() if key.split(".")[1] in inputs} | overrides
    )
    return save_untrained(folder, job)


def save_untrained(folder: Path, job: Job) -> list[Sample]:
    torch.manual_seed(0)
    job, dataset = load_dataset(job)
    model = FusedModel(job)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)  # placeholders begin with zeros
    save_model(
        folder / "model",
        job,
        {name: tensor.detach() for name, tensor in trainable_state_dict(model).items()},
        {},
    )
    preprocessor = Preprocessor(job.inputs)
    return [preprocessor.from_row(row) for row in list(dataset.splits["train"])[:6]]


def assert_same_predictions(
    folder: Path, samples: Sequence[Sample], absences: Sequence[Sequence[str]] = ((),)
) -> None:
    """Compare onnxruntime's predictions from FOLDER/onnx with those of FOLDER/model, each time without some inputs."""
    job, model = load_model(folder / "model")
    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    for absent in absences:
        left = [
            Sample({n: v for n, v in one.features.items() if n not in absent}, one.keys, {})
            for one in samples
        ]
        with torch.no_grad():
            outputs = model(collate(left, Preprocessor(job.inputs).modalities)).tasks
        found = dict(zip(job.tasks, session.run(list(job.tasks), feeds(job, left)), strict=True))
        for name, head in task_heads(model).items():
            wanted = head.prediction_tensor(outputs[name])
            np.testing.assert_allclose(
                found[name], wanted.numpy(), rtol=1e-4, atol=1e-4, err_msg=f"{name} {absent}"
            )


def feeds(job: Job, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Return the tensors of the graph: a value per sample and item, any for an absent one."""
    tensors: dict[str, np.ndarray] = {}
    for name, modality in Preprocessor(job.inputs).modalities.items():
        items = job.inputs[name].max_items
        values = [list(one.features.get(name, [])) for one in samples]
        dummy = modality.dummy_features()
        padded = [value for given in values for value in given + [dummy] * (items - len(given))]
        shape = (len(samples), items) if items > 1 else (len(samples),)
        for key, array in modality.collate(padded).items():
            tensors[f"{name}.{key}"] = array.reshape(shape + array.shape[1:])
        present = np.array([[place < len(given) for place in range(items)] for given in values])
        tensors[f"{name}.present"] = present.reshape(shape)
    return tensors


def test_every_type_of_input_with_and_without_each(tmp_path: Path) -> None:
    """Of texts, n-grams next to a pretrained encoder."""
    bert = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert"))}
    encoder = {"type": "ngrams", "hidden_size": 8, "pretrained": bert}
    samples = save_job(tmp_path, list(SMALL_ENCODERS), TASKS, **{"inputs.text.encoder": encoder})
    result = rayfuse.export(tmp_path / "model", tmp_path / "onnx", "onnx", verbose=False)
    assert result.folders == {"model": tmp_path / "onnx"}
    assert_same_predictions(
        tmp_path, samples, [[], *([name] for name in SMALL_ENCODERS), list(SMALL_ENCODERS)[1:]]
    )
    assert_same_predictions(tmp_path, samples[:1])
    described = json.loads((tmp_path / "onnx/model.json").read_text())
    inputs = {one["name"]: (one["dtype"], one["shape"]) for one in described["inputs"]}
    assert inputs["images.pixel_values"] == ("float32", ["batch", 3, 3, 8, 8])
    assert inputs["images.present"] == ("bool", ["batch", 3])
    assert inputs["person.present"] == ("bool", ["batch"])
    assert inputs["text.input_ids"] == ("int64", ["batch", "text.length"])
    assert inputs["text.weights"] == ("float32", ["batch", "text.length"])
    tokens = ("int64", ["batch", "text.pretrained_input_ids.length"])
    assert inputs["text.pretrained_input_ids"] == inputs["text.pretrained_attention_mask"] == tokens
    outputs = {one["name"]: (one["type"], one["shape"], one.get("labels")) for one in described["outputs"]}
    assert outputs == {
        "answer": ("classification", ["batch", 2], ["bright", "dark"]),
        "years": ("regression", ["batch"], None),
        "grade": ("ordinal", ["batch", 3], ["low", "middle", "high"]),
    }
    assert described["preprocessing"]["text"]["encoder"]["vocabulary"]
    assert (tmp_path / "onnx/encoders/text/pretrained/tokenizer.json").exists()


def test_a_pretrained_text_encoder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert = {"type": "huggingface", "model": str(tiny_encoders.bert(tmp_path / "bert")), "train": "full"}
    samples = save_job(
        tmp_path / "job", ["text", "person"], {"answer": TASKS["answer"]}, **{"inputs.text.encoder": bert}
    )
    rayfuse.export(tmp_path / "job/model", tmp_path / "job/onnx", "onnx", verbose=False)
    assert_same_predictions(tmp_path / "job", samples, [[], ["person"]])
    described = json.loads((tmp_path / "job/onnx/model.json").read_text())
    assert described["preprocessing"]["text"]["encoder"]["model"] == "./encoders/text"
    assert (tmp_path / "job/onnx/encoders/text/tokenizer.json").exists()
    assert not list((tmp_path / "job/onnx/encoders/text").glob("*.safetensors"))
    page = (root / "docs/model-registry.md").read_text()
    [code] = re.findall(r"<!-- the tests run this block .*? -->\n```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path / "job/onnx")
    names: dict[str, Any] = {}
    exec(code, names)
    row = {"text": "bright or dark?"}
    scores = Predictor(tmp_path / "job/model").predict([row])[0]["outputs"]["answer"]["scores"]
    np.testing.assert_allclose(names["predictions"][0], [list(scores.values())], atol=1e-4)


def test_parts_that_onnx_cannot_express_are_named(tmp_path: Path) -> None:
    save_job(
        tmp_path,
        ["text"],
        {"answer": TASKS["answer"]},
        **{"inputs.text.encoder": {"type": "gru", "hidden_size": 8}},
    )
    with pytest.raises(
        SpecError, match=r"^inputs\.text\.encoder: this type cannot be converted to ONNX \(.*; train a model"
    ):
        rayfuse.export(tmp_path / "model", tmp_path / "onnx", "onnx", verbose=False)
    assert not (tmp_path / "onnx").exists()


def test_tasks_without_a_tensor_are_named(tmp_path: Path) -> None:
    tags = {"type": "tagging", "input": "text", "column": "tags"}
    rows = [{"text": ["which", f"{number}"], "tags": ["O", "B-thing"]} for number in range(16)]
    encoder = {"type": "transformer", "hidden_size": 8, "heads": 2, "layers": 1, "pool": "none"}
    text = {"type": "text", "max_tokens": 16, "encoder": encoder}
    save_untrained(tmp_path, make_job(tmp_path, rows, inputs={"text": text}, tasks={"entities": tags}))
    with pytest.raises(
        SpecError, match=r"tasks\.entities: predictions of type tagging are not exported to ONNX; export a"
    ):
        rayfuse.export(tmp_path / "model", tmp_path / "onnx", "onnx", verbose=False)


def test_the_folder_must_be_new(tmp_path: Path) -> None:
    save_job(tmp_path, ["person"], {"answer": TASKS["answer"]}, **{"inputs.person.optional": False})
    (tmp_path / "onnx").mkdir()
    with pytest.raises(SpecError, match="onnx: exists already; choose another --output, or remove it"):
        rayfuse.export(tmp_path / "model", tmp_path / "onnx", "onnx", verbose=False)
