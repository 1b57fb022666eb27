"""Answer requests with a trained model: the one path behind `predict`, MLflow and the endpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rayfuse.data.batches import collate
from rayfuse.data.samples import Sample, SampleMaker
from rayfuse.model import explain as explaining
from rayfuse.model.folder import load_model
from rayfuse.model.fused import heads_of


class Predictor:
    """A model and the code that prepares what it reads. `prepare` may run in many threads at a time."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.job, model = load_model(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device)
        self.maker = SampleMaker(self.job.inputs)

    def prepare(self, values: Mapping[str, Any]) -> Sample:
        """Features of one request: bytes for inputs that are files, else the value itself.

        Raises BadInput or MissingInput, naming the input.
        """
        return self.maker.from_values(values)

    def answer(self, samples: Sequence[Sample], explain: bool = False) -> list[dict[str, Any]]:
        """For each sample {"outputs": {task: answer}, "inputs_used": [names in the spec's order]}.

        With `explain` also "explain": why (see `rayfuse.model.explain.plain`), at many times the cost.
        """
        batch = collate(samples, self.maker.modalities).to(self.device)
        if not explain:
            with torch.inference_mode():
                return self._answers(samples, self.model(batch))
        explanation = explaining.explain(self.model, batch)
        heads = heads_of(self.model)
        return [
            {**answer, "explain": explaining.plain(explanation, row, heads)}
            for row, answer in enumerate(self._answers(samples, explanation.outputs))
        ]

    def _answers(
        self, samples: Sequence[Sample], outputs: Mapping[str, torch.Tensor]
    ) -> list[dict[str, Any]]:
        answers = {name: head.answers(outputs[name]) for name, head in heads_of(self.model).items()}
        return [
            {
                "outputs": {name: rows[i] for name, rows in answers.items()},
                "inputs_used": [name for name in self.job.inputs if name in sample.features],
            }
            for i, sample in enumerate(samples)
        ]

    def predict(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Prepare and answer several requests in one batch."""
        return self.answer([self.prepare(values) for values in requests])
