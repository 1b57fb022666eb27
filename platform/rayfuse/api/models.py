"""Models for prediction: from the registry, a folder, or an endpoint."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from rayfuse.errors import InvalidInputError, MissingInputError, SpecError

if TYPE_CHECKING:
    import pandas as pd
    import ray.data

    from rayfuse.data.row_adapter import InputDescription as InputDescription  # also for the command line
    from rayfuse.data.rows import InvalidRow
    from rayfuse.data.rows import Row as DataRow
    from rayfuse.model.predictor import Predictor
    from rayfuse.spec.job import Job

API_KEY_VARIABLE = "RAYFUSE_API_KEY"
"""Environment variable with the API key of endpoints."""

Row = Mapping[str, Any]
"""A row: the training columns, or a value per input."""
Prediction = dict[str, Any]
"""{"outputs": {task: prediction}, "inputs_used": [names], "model": {"name", "version"}}."""

_CONCURRENT_REQUESTS = 8
_RETRY_SECONDS = 120.0
"""Time for which requests of a batch prediction are repeated while the endpoint is overloaded."""
_ROWS_PER_BATCH = 32
_EXPLAINED_ROWS_PER_BATCH = 1
_T = TypeVar("_T")


def load_model(
    uri: str | Path,
    *,
    tracking_uri: str | None = None,
    device: str | None = None,
    api_key: str | None = None,
) -> "Model":
    """Load a model for prediction.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a model folder or its URL, or the http(s) URL of an endpoint.
        tracking_uri: MLflow tracking URI for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        device: Device of PyTorch, such as `cuda:0`; by default a GPU if there is one.
        api_key: API key of the endpoint; by default RAYFUSE_API_KEY.

    Raises:
        SpecError: The registered model, alias or version does not exist.
        DataError: It is not a model folder, or the folder is damaged.
        UnavailableError: MLflow, the store or the endpoint is unreachable or denies access.
    """
    if not str(uri).startswith(("http://", "https://")):
        return _load_folder_model(uri, tracking_uri, device)
    if device is not None:
        raise SpecError(f"device: {device}: an endpoint runs on its own devices; leave it out")
    return RemoteModel(str(uri), api_key)


class Model(ABC):
    """A model that predicts rows: the training columns, or a value per input, as over HTTP.

    An input is given by the columns that it was trained on, or by its name. Files are paths (relative to the current
    folder), URLs or bytes; images are also images of Pillow or arrays of integers, and clips (samples, rate). Null, NaN and NA
    are absent inputs. Other columns are ignored.
    """

    name: str
    """Name of the registered model."""
    version: int | str | None
    """Version of the registered model; None if it is not from a registry."""
    inputs: "dict[str, InputDescription]"
    """The inputs, by name."""
    tasks: dict[str, str]
    """The type of each task, by name."""
    is_remote: ClassVar[bool] = False
    """True if an endpoint predicts, not this process."""

    @property
    @abstractmethod
    def job(self) -> "Job":
        """The fitted job of the model. Raises SpecError for an endpoint, which does not publish it."""

    @overload
    def predict(self, values: Row) -> Prediction: ...
    @overload
    def predict(self, values: Sequence[Row]) -> list[Prediction]: ...
    @overload
    def predict(self, values: "pd.DataFrame | ray.data.Dataset") -> Any: ...

    def predict(self, values: Any) -> Any:
        """Predict a row, a list of rows, a pandas DataFrame, or a Ray Dataset.

        A row results in {"outputs": {task: prediction}, "inputs_used": [names], "model": {"name", "version"}}, a list
        in a list of these. A DataFrame results in a DataFrame with the same index: a column TASK/KEY for each part of a
        prediction, such as `answer/label`, and `inputs_used`. A Ray Dataset results in a Ray Dataset with these columns,
        computed by actors that load the model when the dataset is consumed.

        Raises InvalidInputError with the input, and for several rows with the number of the row, from 0.
        """
        if _is_dataset(values):
            return self._predict_dataset(values)
        if _is_frame(values):
            predictions = self._predict_rows(self._rows_of(values))
            return self._to_frame(predictions, values.index)
        return _map_rows(self._predict_rows, values)

    def explain(self, values: Any) -> Any:
        """Predict and explain a row (dict), or the rows of a list or DataFrame (list of dicts).

        Each prediction also has "explain": contributions of the inputs, attention and saliency, for every task. Raises
        SpecError for a model with too many inputs, and InvalidInputError as `predict` does.
        """
        if _is_frame(values):
            values = self._rows_of(values)
        return _map_rows(partial(self._predict_rows, explain=True), values)

    @abstractmethod
    def predict_data(
        self, rows: "Sequence[DataRow | InvalidRow]", batch_size: int, concurrency: int | None = None
    ) -> "list[Prediction | InvalidRow]":
        """Predict rows of data files; the result of a row that cannot be used is an InvalidRow.

        A model in this process predicts batches of `batch_size`; to an endpoint, `concurrency` requests are sent at a
        time (8 by default), and repeated while it is overloaded.
        """

    @abstractmethod
    def check_rows(self, rows: "Sequence[DataRow | InvalidRow]") -> None:
        """Raise DataError if none of these rows of a data file can be predicted, before other processes are started."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Name, version and source of the model as JSON, to recognize it."""

    def __repr__(self) -> str:
        version = "" if self.version is None else f", version {self.version}"
        inputs = [f"{name} ({one.type}{', optional' * one.optional})" for name, one in self.inputs.items()]
        tasks = [f"{name} ({kind})" for name, kind in self.tasks.items()]
        return (
            f"{type(self).__name__}: {self.name}{version}\n"
            f"  inputs: {', '.join(inputs)}\n"
            f"  tasks: {', '.join(tasks)}"
        )

    @property
    def model(self) -> dict[str, Any]:
        """`name` and `version`, as in predictions."""
        return {"name": self.name, "version": self.version}

    @abstractmethod
    def _predict_rows(self, rows: Sequence[Row], explain: bool = False) -> list[Prediction]:
        """Predict rows; raise InvalidInputError with the number of the row."""

    @abstractmethod
    def loader(self) -> "ModelLoader":
        """Return what other processes load this model with."""

    @abstractmethod
    def _rows_of(self, frame: "pd.DataFrame") -> list[dict[str, Any]]:
        """Return the rows of a frame, without missing cells."""

    def _to_frame(self, predictions: Sequence[Prediction], index: Any) -> "pd.DataFrame":
        from rayfuse.data.frames import prediction_frame

        return prediction_frame(predictions, self._frame_columns(), index)

    def _frame_columns(self) -> list[str]:
        """Return the columns TASK/KEY that are known before a prediction."""
        return []

    def _predict_dataset(self, dataset: "ray.data.Dataset") -> "ray.data.Dataset":
        source = self.loader()
        return dataset.map_batches(
            _BatchPredictor,
            fn_constructor_args=(source,),
            batch_format="pandas",
            batch_size=_ROWS_PER_BATCH,
            num_gpus=1 if source.needs_gpu else 0,
            udf_modifying_row_count=False,
        )


class FolderModel(Model):
    """A model that is loaded into this process."""

    def __init__(
        self, predictor: "Predictor", name: str | None, version: int | None, source: "ModelLoader"
    ) -> None:
        self.predictor = predictor
        """Preprocessing and the PyTorch model."""
        self.name = name or predictor.job.registered_model_name
        self.version = version
        self.inputs = predictor.row_adapter.inputs
        self.tasks = {task: config.type for task, config in predictor.job.tasks.items()}
        self._source = source

    @property
    def job(self) -> "Job":
        return self.predictor.job

    def _predict_rows(self, rows: Sequence[Row], explain: bool = False) -> list[Prediction]:
        size = _EXPLAINED_ROWS_PER_BATCH if explain else _ROWS_PER_BATCH
        if explain:
            from rayfuse.model.explain import check_explainable

            check_explainable(list(self.inputs))
        predictions = self.predictor.predict_rows(rows, batch_size=size, explain=explain)
        return [{**prediction, "model": self.model} for prediction in predictions]

    def predict_data(
        self, rows: "Sequence[DataRow | InvalidRow]", batch_size: int, concurrency: int | None = None
    ) -> "list[Prediction | InvalidRow]":
        return self.predictor.predict_valid_rows(rows, batch_size)

    def check_rows(self, rows: "Sequence[DataRow | InvalidRow]") -> None:
        self.predictor.check_rows(rows)

    @property
    def identity(self) -> dict[str, Any]:
        from rayfuse.registry.download import folder_digest

        return {**self.model, "digest": folder_digest(self.predictor.folder)}

    def loader(self) -> "ModelLoader":
        return self._source

    def _rows_of(self, frame: "pd.DataFrame") -> list[dict[str, Any]]:
        return self.predictor.row_adapter.rows_of(frame)

    def _frame_columns(self) -> list[str]:
        from rayfuse.model.prediction_schema import column_schemas

        return list(column_schemas(self.job))


class RemoteModel(Model):
    """The model of an endpoint. Needs neither torch nor Ray here; files are read here and sent."""

    is_remote = True

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Connect to an endpoint, and read the inputs and tasks of its model.

        Raises UnavailableError if it is unreachable or not an endpoint of Rayfuse.
        """
        from rayfuse.data.row_adapter import InputDescription, RowAdapter
        from rayfuse.serving.client import describe_model

        self.url = url
        """URL of the endpoint."""
        self._api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        described = describe_model(url, self._api_key)
        self.name, self.version = str(described["name"]), described["version"]
        self.inputs = {
            name: InputDescription.from_json(content) for name, content in described["inputs"].items()
        }
        self.tasks = dict(described["tasks"])
        self._adapter = RowAdapter(self.inputs)

    @property
    def job(self) -> "Job":
        raise SpecError(f"{self.url}: an endpoint does not publish its job; load the model by its name")

    def _predict_rows(self, rows: Sequence[Row], explain: bool = False) -> list[Prediction]:
        """Send one request per row, several at a time, as the endpoint forms batches; explanations one at a time."""
        if len(rows) == 1 or explain:
            return [self._request(number, row, explain) for number, row in enumerate(rows)]
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS, thread_name_prefix="predict") as pool:
            futures = [pool.submit(self._request, number, row) for number, row in enumerate(rows)]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _request(self, number: int, row: Row, explain: bool = False) -> Prediction:
        from rayfuse.serving.client import predict

        try:
            return predict(self.url, self._fields(row), self._api_key, explain=explain)
        except InvalidInputError as error:
            raise error.in_row(number) from None

    def predict_data(
        self, rows: "Sequence[DataRow | InvalidRow]", batch_size: int, concurrency: int | None = None
    ) -> "list[Prediction | InvalidRow]":
        with ThreadPoolExecutor(concurrency or _CONCURRENT_REQUESTS, thread_name_prefix="predict") as pool:
            futures = [pool.submit(self._request_row, row) for row in rows]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _request_row(self, row: "DataRow | InvalidRow") -> "Prediction | InvalidRow":
        from rayfuse.data.rows import InvalidRow
        from rayfuse.serving.client import predict

        if isinstance(row, InvalidRow):
            return row
        try:
            return predict(
                self.url, self._fields(row.values, row.folder), self._api_key, retry_for=_RETRY_SECONDS
            )
        except (InvalidInputError, SpecError) as error:  # also a value above a limit of the endpoint
            return InvalidRow(row.origin, str(error))

    def check_rows(self, rows: "Sequence[DataRow | InvalidRow]") -> None:
        """Accept all rows, as the endpoint checks them."""

    def _fields(self, row: Row, folder: str = ".") -> dict[str, Any]:
        values = {name: _to_field(value) for name, value in self._adapter.read(row, folder).items()}
        if not values:
            raise MissingInputError(f"no input given; this model reads: {', '.join(self.inputs)}")
        return values

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.model, "url": self.url}

    def loader(self) -> "ModelLoader":
        return ModelLoader(self.url, api_key=self._api_key)

    def _rows_of(self, frame: "pd.DataFrame") -> list[dict[str, Any]]:
        return self._adapter.rows_of(frame)


@dataclass(frozen=True)
class ModelLoader:
    """Arguments of `load_model` for other processes."""

    uri: str
    """A fixed version of the model."""
    tracking_uri: str | None = None
    """MLflow tracking URI for `models:/…`."""
    device: str | None = None
    """Device of PyTorch."""
    api_key: str | None = None
    """API key of an endpoint."""
    needs_gpu: bool = False
    """True if each process needs a GPU."""

    def __repr__(self) -> str:
        return f"ModelLoader({self.uri!r})"  # Ray logs arguments, and the API key is a secret

    def load(self) -> Model:
        """Load the model."""
        return load_model(self.uri, tracking_uri=self.tracking_uri, device=self.device, api_key=self.api_key)


class _BatchPredictor:
    """Actor of Ray Data that predicts batches."""

    def __init__(self, source: ModelLoader) -> None:
        self._model = source.load()

    def __call__(self, batch: "pd.DataFrame") -> "pd.DataFrame":
        return self._model.predict(batch)


def _load_folder_model(uri: str | Path, tracking_uri: str | None, device: str | None) -> FolderModel:
    from rayfuse.model.predictor import Predictor
    from rayfuse.registry.download import fetch, resolve_version

    resolved = resolve_version(str(uri), tracking_uri)
    found = fetch(resolved.model, tracking_uri)
    predictor = Predictor(found.folder, device)
    is_local = resolved.name is None and ":/" not in str(uri)
    source = ModelLoader(
        str(found.folder.resolve()) if is_local else resolved.model,
        resolved.tracking_uri,
        device,
        needs_gpu=predictor.device.type == "cuda",
    )
    return FolderModel(predictor, found.name, found.version, source)


def _map_rows(function: Callable[[Sequence[Row]], list[_T]], values: Any) -> _T | list[_T]:
    """Apply a function of rows to one row or a list of rows. Raises InvalidInputError for other values."""
    if isinstance(values, Mapping):
        try:
            [result] = function([values])
        except InvalidInputError as error:
            raise type(error)(error.reason, error.input_name) from None
        return result
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise InvalidInputError(
            f"expected a row (dict), a list of rows, a DataFrame or a Ray Dataset, got {type(values).__name__}"
        )
    for number, row in enumerate(values):
        if not isinstance(row, Mapping):
            raise InvalidInputError(
                f"expected a mapping of columns to values, got {type(row).__name__}", row=number
            )
    return function(values) if values else []


def _is_frame(values: Any) -> bool:
    from rayfuse.data.objects import is_instance_of

    return is_instance_of(values, "pandas", "DataFrame")


def _is_dataset(values: Any) -> bool:
    from rayfuse.data.objects import is_instance_of

    return is_instance_of(values, "ray", "Dataset")


def _to_field(value: Any) -> Any:
    """Return a value as the client sends it: bytes, a text, several values, or JSON."""
    from rayfuse.serving.client import MultipleValues

    if isinstance(value, list) and all(isinstance(item, bytes) for item in value):
        return MultipleValues(value)  # none if the list is empty: an absent input
    return value if isinstance(value, (bytes, str)) else _to_json(value)


def _to_json(value: Any) -> Any:
    """Convert arrays, tuples and numbers of other libraries to JSON; NaN becomes null."""
    from rayfuse.spec.base import is_missing

    if isinstance(value, Mapping):
        return {str(key): _to_json(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return _to_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_to_json(inner) for inner in value]
    if is_missing(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, (str, bool, int, float)) else float(value)
