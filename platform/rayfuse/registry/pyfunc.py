"""MLflow python function of a model folder: a DataFrame in, a DataFrame of predictions out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from rayfuse.data.frames import INPUTS_USED, prediction_frame
from rayfuse.data.row_adapter import InputDescription, describe_inputs
from rayfuse.modalities import build_modality
from rayfuse.model.prediction_schema import column_schemas
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from rayfuse.model.predictor import Predictor

ARTIFACT = "model"
"""Key of the model folder among the artifacts of the python function."""

MEDIA_FOLDER = "media_folder"
"""Key of `model_config`: the folder of relative paths in rows. Without it, files that rows name are not read."""


class FusedPythonModel(PythonModel):
    """Model for `mlflow.pyfunc`. Its DataFrame has the training columns, or a column per input; null if absent.

    Rows may come from clients of a server, so files that they name by paths or URLs are read only if the model is loaded
    with `model_config={"media_folder": FOLDER}`.
    """

    predictor: "Predictor"
    """The loaded model."""
    media_folder: str | None = None
    """Folder of relative paths in rows; None: files that rows name are not read."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder of the context's artifacts."""
        from rayfuse.model.predictor import Predictor

        self.predictor = Predictor(context.artifacts[ARTIFACT])
        self.media_folder = (context.model_config or {}).get(MEDIA_FOLDER)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row per row: columns TASK/KEY, one for each part of a task's prediction, and `inputs_used`.

        Raises InvalidInputError with the number of the row, from 0.
        """
        rows = self.predictor.row_adapter.rows_of(model_input)
        predictions = self.predictor.predict_rows(rows, self.media_folder)
        return prediction_frame(predictions, column_schemas(self.predictor.job), model_input.index)


def signature(job: Job) -> "ModelSignature":
    """Return MLflow's signature of a model: the training columns or a column per input, and a frame of predictions.

    Input columns: files are binary, or strings where they are paths; texts are strings; others are any type, as csv files
    have numbers of several types. All but the required inputs whose only column has their name are optional.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    described = describe_inputs(job.inputs, job.data)
    columns = {
        name: ColSpec(_input_type(one), name, required=_is_required(name, one))
        for name, one in described.items()
    }
    for one in described.values():
        for column in one.columns:
            columns.setdefault(column, ColSpec(_column_type(one), column, required=False))
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(_output_type(schema), column, required=not _is_nullable(schema))
        for column, schema in column_schemas(job).items()
    ]
    outputs.append(ColSpec(Array(DataType.string), INPUTS_USED))
    return ModelSignature(inputs=Schema(list(columns.values())), outputs=Schema(outputs))


def example_rows(job: Job) -> pd.DataFrame | None:
    """Return a row of training columns as an example; None if a required input is a file, which would be stored as text."""
    row: dict[str, Any] = {}
    for name, described in describe_inputs(job.inputs, job.data).items():
        if described.fallback_input is not None:
            continue
        value = build_modality(job.inputs[name]).example()
        if described.formats == ("file",) or value is None:
            if described.optional:
                continue
            return None
        if described.is_flat:
            row |= value
        else:
            row |= dict.fromkeys(described.columns, value if described.max_items == 1 else [value])
    return pd.DataFrame([row])


def _is_required(name: str, described: InputDescription) -> bool:
    return not described.optional and described.fallback_input is None and list(described.columns) == [name]


def _input_type(described: InputDescription) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array

    if described.is_flat or (described.formats != ("file",) and "text" not in described.formats):
        return AnyType()
    one = DataType.string if "text" in described.formats else DataType.binary
    return one if described.max_items == 1 else Array(one)


def _column_type(described: InputDescription) -> Any:
    """Return the type of a training column that has another name than its input; media are paths there."""
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType

    is_text = described.max_items == 1 and described.formats in (("file",), ("text", "json"))
    return DataType.string if is_text else AnyType()


def _is_nullable(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return (
        "null" in kind if isinstance(kind, list) else "type" not in schema and None in schema.get("enum", ())
    )


def _output_type(schema: Mapping[str, Any]) -> Any:
    """Return MLflow's type of a part of a prediction, from its JSON Schema; any type where MLflow has none."""
    from mlflow.types.schema import AnyType, Array, Map, Object, Property

    kind = schema.get("type", _enum_type(schema.get("enum", [])))
    if isinstance(kind, list):
        kinds = [one for one in kind if one != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    if kind == "array":
        return Array(_output_type(schema.get("items", {})))
    if kind != "object":
        return _scalar_types().get(kind) or AnyType()
    types = {name: _output_type(one) for name, one in schema.get("properties", {}).items()}
    if not types:
        return (
            Map(_output_type(schema["additionalProperties"]))
            if schema.get("additionalProperties")
            else AnyType()
        )
    if schema.get("required"):
        return Object([Property(name, one) for name, one in types.items()])
    first, *others = types.values()
    return Map(first) if all(first == one for one in others) else AnyType()


def _scalar_types() -> dict[Any, Any]:
    from mlflow.types import DataType

    return {
        "string": DataType.string,
        "number": DataType.double,
        "integer": DataType.long,
        "boolean": DataType.boolean,
    }


def _enum_type(values: Sequence[Any]) -> str | None:
    """Return the JSON type that all values have; None if they differ."""
    kinds = {bool: "boolean", str: "string", int: "integer", float: "number"}
    found = {kinds.get(type(value)) for value in values}
    return found.pop() if len(found) == 1 else None
