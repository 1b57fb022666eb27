"""A model folder as an MLflow python function: a table in, a list of answers out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from rayfuse.errors import BadInput
from rayfuse.spec.inputs import Input

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from rayfuse.model.predictor import Predictor

ARTIFACT = "model"
"""Name of the model folder among the artifacts of the python function."""

_ROWS_PER_BATCH = 32


class FusedPythonModel(PythonModel):
    """Answers a table with a column per input: a file's bytes, or the text, list or mapping itself; null for an absent one."""

    predictor: "Predictor"

    def load_context(self, context: PythonModelContext) -> None:
        from rayfuse.model.predictor import Predictor

        self.predictor = Predictor(Path(context.artifacts[ARTIFACT]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """For each row {"outputs": {task: answer}, "inputs_used": [names]}, as the HTTP endpoint answers."""
        table = model_input.astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        answers: list[dict[str, Any]] = []
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            chunk = enumerate(rows[start : start + _ROWS_PER_BATCH], start)
            answers += self.predictor.answer([self._prepare(number, row) for number, row in chunk])
        return answers

    def _prepare(self, number: int, row: Mapping[str, Any]) -> Any:
        values = {name: value for name, value in row.items() if value is not None}
        try:
            return self.predictor.prepare(values)
        except BadInput as error:
            raise type(error)(f"row {number}: {error}") from None


def signature(inputs: Mapping[str, Input]) -> "ModelSignature":
    """MLflow's schema of a model with these inputs; those that may be left out may be null.

    Binary for files, string for texts, arrays of these for inputs that take several, and anything for the rest.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = [
        ColSpec(_column_type(options), name, required=options.demanded) for name, options in inputs.items()
    ]
    return ModelSignature(inputs=Schema(columns))


def _column_type(options: Input) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array

    from rayfuse.modalities import MODALITIES

    forms = MODALITIES[options.type].forms
    if forms == ("file",) or "text" in forms:
        one = DataType.string if "text" in forms else DataType.binary
        return one if options.max_items == 1 else Array(one)
    return AnyType()
