"""Prediction with a trained model, as used by `rayfuse predict`, MLflow models and endpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rayfuse.data.collate import collate
from rayfuse.data.invalid_rows import InvalidRows, no_valid_rows_message
from rayfuse.data.row_adapter import RowAdapter, describe_inputs
from rayfuse.data.rows import InvalidRow, Row
from rayfuse.data.samples import FileDecoder, Preprocessor, Sample
from rayfuse.errors import DataError, InvalidInputError, SpecError
from rayfuse.model import explain as explaining
from rayfuse.model.fused import task_heads
from rayfuse.model.model_io import load_model
from rayfuse.model.tasks.text_decoding import PromptInputs, TextDecoding

ROWS_PER_BATCH = 32
"""Rows of a batch of `Predictor.predict_rows`."""
SOURCES = "sources"
"""Key of a prediction with the passages that its inputs with `retrieve` have found, by input."""


@dataclass(frozen=True)
class PreparedSample:
    """The prediction of a sample, and the inputs of the prompts of texts that are still to be decoded."""

    prediction: dict[str, Any]
    """{"outputs", "inputs_used"} as of `Predictor.predict_samples`, without the tasks in `prompts`."""
    prompts: Mapping[str, PromptInputs] = field(default_factory=dict)
    """By task."""


class Predictor:
    """Model of a folder with its preprocessing; `preprocess` may run in several threads."""

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        """Load a model folder; `device` is by default a GPU if there is one.

        Raises DataError if it is not a model folder, SpecError for the URI of a registered model.
        """
        if str(folder).startswith("models:"):
            raise SpecError(f"{folder}: not a folder; load a registered model with rayfuse.load_model")
        self.folder = Path(folder)
        """The model folder."""
        self.job, model = load_model(self.folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device)
        self.preprocessor = Preprocessor(self.job.inputs)
        self.row_adapter = RowAdapter(describe_inputs(self.job.inputs, self.job.data))

    def side_preprocessor(self, name: str) -> Preprocessor:
        """Return the preprocessing of requests with one input alone, in which no other input is required."""
        return Preprocessor(
            {
                other: options if other == name else options.model_copy(update={"optional": True})
                for other, options in self.job.inputs.items()
            }
        )

    def read_only(self, name: str) -> None:
        """Read one input of rows alone, as to embed one side of a pair; the others are absent, also required ones."""
        self.preprocessor = self.side_preprocessor(name)
        self.row_adapter = RowAdapter({name: self.row_adapter.inputs[name]})

    def preprocess(self, values: Mapping[str, Any], decode_file: FileDecoder | None = None) -> Sample:
        """Compute the features of one request: {input: bytes of a file, or the value itself}.

        `decode_file`: decoder of files (see `Preprocessor.from_values`).

        Raises InvalidInputError or MissingInputError with the name of the input.
        """
        sample = self.preprocessor.from_values(values, decode_file)
        for head in task_heads(self.model).values():
            head.check_features(sample.features)
        return sample

    def predict_samples(self, samples: Sequence[Sample], explain: bool = False) -> list[dict[str, Any]]:
        """Predict a batch of samples: {"outputs": {task: prediction}, "inputs_used": [names in the spec's order]} of each.

        With `explain` also "explain": attributions (see `rayfuse.model.explain.to_json`), at many times the cost. For
        inputs with `retrieve` also "sources": the passages of each.
        """
        batch = collate(samples, self.preprocessor.modalities).to(self.device)
        if not explain:
            with torch.inference_mode():
                return self.format_predictions(samples, self.model(batch, generate=True).tasks)
        explanation = explaining.explain(self.model, batch, self.preprocessor.modalities)
        heads = task_heads(self.model)
        return [
            {**prediction, "explain": explaining.to_json(explanation, row, heads)}
            for row, prediction in enumerate(self.format_predictions(samples, explanation.outputs))
        ]

    def text_decodings(self) -> dict[str, TextDecoding]:
        """Return how the texts of tasks are decoded request by request, by task; without those that cannot be."""
        found = {name: head.text_decoding for name, head in task_heads(self.model).items()}
        return {name: decoding for name, decoding in found.items() if decoding is not None}

    def prepare_samples(
        self, samples: Sequence[Sample], decodings: Mapping[str, TextDecoding]
    ) -> list[PreparedSample]:
        """Predict a batch of samples, except the texts of some tasks, for which the inputs of their prompts are returned."""
        batch = collate(samples, self.preprocessor.modalities).to(self.device)
        with torch.inference_mode():
            fused = self.model.fuse(self.model.encode(batch), batch)
            predictions = self.format_predictions(samples, self.model.predictions(fused, skip=decodings))
            prompts = {name: decoding.read_inputs(fused) for name, decoding in decodings.items()}
        return [
            PreparedSample(prediction, {name: inputs[row] for name, inputs in prompts.items()})
            for row, prediction in enumerate(predictions)
        ]

    def format_predictions(
        self, samples: Sequence[Sample], outputs: Mapping[str, torch.Tensor]
    ) -> list[dict[str, Any]]:
        """Return the predictions of samples from the raw outputs of each task."""
        heads = task_heads(self.model)
        predictions = {name: heads[name].format_predictions(found) for name, found in outputs.items()}
        return [
            {
                "outputs": {name: rows[i] for name, rows in predictions.items()},
                "inputs_used": [name for name in self.job.inputs if name in sample.features],
                **({SOURCES: sample.sources} if sample.sources else {}),
            }
            for i, sample in enumerate(samples)
        ]

    def predict_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        folder: str | None = ".",
        batch_size: int = ROWS_PER_BATCH,
        explain: bool = False,
    ) -> list[dict[str, Any]]:
        """Predict rows with the training columns or a value per input, in batches.

        Paths are relative to `folder`; with None, files that rows name are not read. Raises InvalidInputError with the
        number of the row, from 0.
        """
        predictions: list[dict[str, Any]] = []
        for start in range(0, len(rows), batch_size):
            numbered = enumerate(rows[start : start + batch_size], start)
            samples = [self._preprocess_row(number, row, folder) for number, row in numbered]
            predictions += self.predict_samples(samples, explain)
        return predictions

    def predict_valid_rows(
        self, rows: Sequence[Row | InvalidRow], batch_size: int = ROWS_PER_BATCH
    ) -> list[dict[str, Any] | InvalidRow]:
        """Predict rows of data files, in batches; the result of a row that cannot be used is an InvalidRow."""
        results: list[dict[str, Any] | InvalidRow] = []
        for start in range(0, len(rows), batch_size):
            found = [self._try_preprocess(row) for row in rows[start : start + batch_size]]
            samples = [one for one in found if isinstance(one, Sample)]
            predictions = iter(self.predict_samples(samples) if samples else ())
            results += [one if isinstance(one, InvalidRow) else next(predictions) for one in found]
        return results

    def check_rows(self, rows: Sequence[Row | InvalidRow]) -> None:
        """Raise DataError with the most common reasons if none of the rows of a data file can be used."""
        invalid = InvalidRows()
        for found in map(self._try_preprocess, rows):
            if isinstance(found, Sample):
                return
            invalid.add(found)
        source = rows[0].origin.rpartition(":")[0] if rows else "data"
        raise DataError(no_valid_rows_message(source, invalid))

    def _try_preprocess(self, row: Row | InvalidRow) -> Sample | InvalidRow:
        if isinstance(row, InvalidRow):
            return row
        try:
            return self.preprocess(self.row_adapter.read(row.values, row.folder))
        except InvalidInputError as error:
            return InvalidRow(row.origin, str(error))

    def _preprocess_row(self, number: int, row: Mapping[str, Any], folder: str | None) -> Sample:
        try:
            return self.preprocess(self.row_adapter.read(row, folder))
        except InvalidInputError as error:
            raise error.in_row(number) from None

    def predict(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Preprocess and predict several requests in one batch."""
        return self.predict_samples([self.preprocess(values) for values in requests])
