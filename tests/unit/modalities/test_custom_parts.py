"""A custom modality and a custom task describe themselves to serving, plans, step metrics and explanations."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch
from endpoints import running_endpoint
from torch import nn

from rayfuse.api.serving import curl_command
from rayfuse.data.collate import collate
from rayfuse.data.ingest import read_job_rows
from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import (
    make_synthetic_batch,
    max_input_lengths,
    max_lengths,
    with_assumed_statistics,
    with_lengths,
)
from rayfuse.evaluation.attribution_plots import explain_rows, save_attribution_plots
from rayfuse.modalities import Features, Modality
from rayfuse.modalities.base import InputFitter, SaliencyMap, Schema, pad
from rayfuse.model.encoders import Encoder
from rayfuse.model.predictor import Predictor
from rayfuse.model.tasks import TaskHead
from rayfuse.model.tokens import FusedState, Tokens, as_single_token, mean_pool
from rayfuse.serving.openapi import build_openapi
from rayfuse.spec.base import SpecModel
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Target
from rayfuse.training.step_metrics import MetricReducer, StepPosition

BINS = 6


class MaximumFitter(InputFitter):
    """Largest intensity of the training rows."""

    def __init__(self, options: Any) -> None:
        self.options, self.maximum = options, 0.0

    def partial_fit(self, value: Any) -> None:
        self.maximum = max(self.maximum, *value)

    def finalize(self) -> Any:
        return self.options.model_copy(update={"scale": float(self.maximum)})


class SpectrumModality(Modality):
    """A list of intensities, scaled by the largest of the training rows."""

    class Options(SpecModel):
        max_bins: int = BINS
        scale: float | None = None

    value_formats = ("json",)
    length_field = "max_bins"
    length_mask = "bin_mask"

    @classmethod
    def fitter(cls, options: Options) -> InputFitter:
        return MaximumFitter(options)

    def decode(self, value: Any) -> np.ndarray:
        if not isinstance(value, list) or not value:
            raise InvalidInputError(f"expected a list of intensities, got {type(value).__name__}")
        return np.array(value[: self.options.max_bins], dtype=np.float32)

    def process(self, decoded: np.ndarray) -> Features:
        scaled = (decoded / self.options.scale).astype(np.float32)
        return {"spectrum": scaled, "bin_mask": np.ones(len(decoded), dtype=np.int64)}

    def dummy_features(self) -> Features:
        return self.process(np.zeros(1))

    def longest_features(self, as_words: bool = False) -> Features:
        return self.process(np.zeros(self.options.max_bins))

    def num_steps(self, decoded: np.ndarray) -> int:
        return len(decoded)

    def collate(self, rows: list[Features]) -> Features:
        return {name: pad([row[name] for row in rows], 0) for name in rows[0]}

    def json_schema(self) -> Schema:
        return {"type": "array", "items": {"type": "number"}, "maxItems": self.options.max_bins}

    def example(self) -> Any:
        return [1.0, 0.5]

    def description(self) -> str:
        return f"a spectrum; the first {self.options.max_bins} bins are read"

    def curl_field(self, name: str) -> str:
        return f"-F {name}='{json.dumps(self.example())}'"

    def with_assumed_statistics(self) -> tuple[Options, list[str]]:
        return self.options.model_copy(update={"scale": 1.0}), ["scale 1"]

    def saliency_map(self, shapes: Mapping[str, tuple[int, ...]]) -> SaliencyMap | None:
        return SaliencyMap("spectrum", axis_label="wavelength")


class SpectrumEncoder(Encoder):
    """The mean of a linear layer over the bins."""

    width = 8

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(1, 8)

    def forward(self, spectrum: torch.Tensor, bin_mask: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(mean_pool(self.linear(spectrum.unsqueeze(2)).tanh(), bin_mask.bool()))


class BareModality(Modality):
    """Modality with the required methods only: a JSON number."""

    value_formats = ("json",)

    def decode(self, value: Any) -> float:
        return float(value)

    def process(self, decoded: float) -> Features:
        return {"number": np.array([decoded], dtype=np.float32)}

    def dummy_features(self) -> Features:
        return self.process(0.0)


class BareEncoder(Encoder):
    width = 8

    def __init__(self, options: Any, source: Any) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(1, 8)

    def forward(self, number: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(self.linear(number))


class MagnitudeHead(TaskHead):
    """A number in units of `unit`."""

    class Options(SpecModel):
        unit: float | None = None

    attribution_score_name = "magnitude"

    def __init__(self, options: Options, dim: int) -> None:
        super().__init__(options, dim)
        self.unit = options.unit or 1.0
        self.linear = nn.Linear(dim, 1)

    def forward(self, fused: FusedState) -> torch.Tensor:
        return self.linear(fused["vector"]) * self.unit

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).square()

    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        return [{"magnitude": value} for value in outputs[:, 0].tolist()]

    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {}

    @classmethod
    def response_schema(cls, config: Options) -> Schema:
        return {
            "type": "object",
            "properties": {"magnitude": {"type": "number"}},
            "title": f"in {config.unit}",
        }

    @classmethod
    def with_assumed_statistics(cls, config: Options) -> tuple[Options, list[str]]:
        return config.model_copy(update={"unit": 2.0}), ["unit 2"]

    @classmethod
    def dummy_target(cls, config: Options, inputs: Mapping[str, Any]) -> Target:
        return 3.0 * (config.unit or 1.0)

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        return f"magnitude {prediction['magnitude']:.1f}"


def custom(part: type) -> str:
    return f"{__name__}:{part.__name__}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("custom")
    for name in ("train", "test"):
        rows = [
            {"star": [float(i % 3), 2.0, 4.0, 1.0][: 2 + i % 3], "bare": i, "size": float(i % 3)}
            for i in range(24)
        ]
        tiny_jobs.write_rows(folder / f"{name}.jsonl", rows)
    inputs = {
        "star": {"type": custom(SpectrumModality), "encoder": {"type": custom(SpectrumEncoder)}},
        "bare": {"type": custom(BareModality), "encoder": {"type": custom(BareEncoder)}, "optional": True},
    }
    tasks = {"size": {"type": custom(MagnitudeHead), "options": {"unit": 1.5}}}
    overrides = {"inputs": inputs, "tasks": tasks, "train.early_stopping": None}
    found: Job = tiny_jobs.tiny_job(folder, **overrides)
    return found


@pytest.fixture(scope="module")
def predictor(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(tiny_jobs.make_model_folder(tmp_path_factory.mktemp("model"), steps=3, job=job))


def test_openapi_documents_them(predictor: Predictor) -> None:
    document = build_openapi(predictor.job, {"name": "custom", "version": 1}, "", requires_api_key=False)
    schemas = document["components"]["schemas"]
    assert schemas["Inputs"]["properties"]["star"] == {
        "type": "array",
        "items": {"type": "number"},
        "maxItems": BINS,
        "description": f"a spectrum; the first {BINS} bins are read",
    }
    assert schemas["Inputs"]["properties"]["bare"] == {"description": "a value of BareModality (optional)"}
    outputs = schemas["Response"]["properties"]["outputs"]["properties"]
    assert outputs["size"] == {
        "type": "object",
        "properties": {"magnitude": {"type": "number"}},
        "title": "in 1.5",
    }
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    examples = content["application/json"]["examples"]
    assert examples["one"]["value"] == {"inputs": {"star": [1.0, 0.5]}}, (
        "an input without an example is left out"
    )
    assert content["multipart/form-data"]["schema"]["properties"]["star"]["examples"] == [[1.0, 0.5]]
    [prediction] = predictor.predict([examples["one"]["value"]["inputs"]])
    assert set(prediction["outputs"]["size"]) == {"magnitude"}


def test_the_curl_command_sends_them(predictor: Predictor) -> None:
    parts = shlex.split(curl_command(running_endpoint("custom"), predictor.job))
    assert parts == ["curl", "-F", "star=[1.0, 0.5]", "-F", "bare=…", "http://host/custom/predict"]


def test_a_plan_needs_no_rows(job: Job) -> None:
    assumed, notes = with_assumed_statistics(job)
    assert notes == ["star: scale 1", "size: unit 2"]
    batch = make_synthetic_batch(assumed, 3)
    features = batch.inputs["star"].features
    assert features is not None
    assert features["spectrum"].shape == (3, BINS)
    assert batch.targets["size"].tolist() == [6.0] * 3
    assert Simulation(assumed, "fp32").simulate_step(3).flops > 0


def test_lengths_are_those_of_its_options(predictor: Predictor) -> None:
    job = predictor.job
    assert max_lengths(job) == {"star": BINS}
    shorter = with_lengths(job, {"star": 4})
    assert max_lengths(shorter) == {"star": 4}
    features = make_synthetic_batch(shorter, 2).inputs["star"].features
    assert features is not None
    assert features["spectrum"].shape == (2, 4)
    rows, _ = read_job_rows(job.data.train, job)
    assert max_input_lengths(job, rows) == {"star": 4}
    with pytest.raises(SpecError, match="have no length; leave it out"):
        with_lengths(job, {"bare": 1})


def test_step_metrics_count_its_steps(predictor: Predictor) -> None:
    samples = [predictor.preprocess({"star": star}) for star in ([1, 2], [1, 2, 3])]
    batch = collate(samples, predictor.preprocessor.modalities)
    reducer = MetricReducer(predictor.job, torch.device("cpu"))
    reducer.update(StepPosition(0, 0, 1, 0.1), [batch], torch.tensor(1.0), {}, None, 0.0)
    metrics = reducer.flush()
    assert metrics is not None
    assert metrics.tokens == {"star": (5, 6)}


def test_explanations_show_them(predictor: Predictor, tmp_path: Path) -> None:
    sample = predictor.preprocess({"star": [1, 2, 3], "bare": 1})
    [prediction] = predictor.predict_samples([sample], explain=True)
    found = prediction["explain"]["tasks"]["size"]
    assert found["score"] == "magnitude"
    assert set(found["saliency"]) == {"star"}
    assert len(found["saliency"]["star"]) == 3
    rows, _ = read_job_rows(predictor.job.data.train, predictor.job)
    explained = explain_rows(predictor, rows, 1)
    assert explained[0].explanation.saliency_maps["star"].axis_label == "wavelength"
    [plot] = save_attribution_plots(tmp_path, explained, predictor)
    assert plot.stat().st_size > 1000
