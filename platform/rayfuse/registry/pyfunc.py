"""MLflow python function of a model folder: a DataFrame in, a list of predictions out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from rayfuse.errors import InvalidInputError
from rayfuse.spec.inputs import Input

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from rayfuse.data.samples import Sample
    from rayfuse.model.predictor import Predictor

ARTIFACT = "model"
"""Key of the model folder among the artifacts of the python function."""

_ROWS_PER_BATCH = 32


class FusedPythonModel(PythonModel):
    """Model for `mlflow.pyfunc`. Its DataFrame has a column per input: bytes of a file, text, list or mapping; null if absent."""

    predictor: "Predictor"
    """The loaded model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder of the context's artifacts."""
        from rayfuse.model.predictor import Predictor

        self.predictor = Predictor(Path(context.artifacts[ARTIFACT]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return {"outputs": {task: prediction}, "inputs_used": [names]} for each row, as the HTTP endpoint does.

        Raises InvalidInputError with the number of the row, from 0.
        """
        table = model_input.astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        predictions: list[dict[str, Any]] = []
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            chunk = enumerate(rows[start : start + _ROWS_PER_BATCH], start)
            predictions += self.predictor.predict_samples(
                [self._prepare(number, row) for number, row in chunk]
            )
        return predictions

    def _prepare(self, number: int, row: Mapping[str, Any]) -> "Sample":
        values = {name: value for name, value in row.items() if value is not None}
        try:
            return self.predictor.preprocess(values)
        except InvalidInputError as error:
            raise error.in_row(number) from None


def signature(inputs: Mapping[str, Input]) -> "ModelSignature":
    """Return MLflow's signature of a model with these inputs; columns of optional inputs may be null.

    Files are binary, texts are strings, inputs with several items are arrays of these, and others are any type.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = [
        ColSpec(_column_type(options), name, required=options.required_in_request)
        for name, options in inputs.items()
    ]
    return ModelSignature(inputs=Schema(columns))


def _column_type(options: Input) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array

    from rayfuse.modalities import modality_class

    formats = modality_class(options).value_formats
    if formats == ("file",) or "text" in formats:
        one = DataType.string if "text" in formats else DataType.binary
        return one if options.max_items == 1 else Array(one)
    return AnyType()
