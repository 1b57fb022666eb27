"""Cases whose value is that of a training run: it ends, it is registered, and its metrics are right."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from shared_cases import MakeCase, load_case

import rayfuse
from rayfuse.cluster.local import LocalCluster

pytestmark = [pytest.mark.shared, pytest.mark.ray]


@pytest.fixture
def storage(ray_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a new MLflow and of runs, on the Ray of all cases."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def train(spec: Path, storage: Path, overrides: dict[str, Any] | None = None, **variables: str) -> Any:
    """Train a case to a registered version."""
    job = load_case(spec, OUT=str(storage), **variables)
    result = rayfuse.train(job, verbose=False, **(overrides or {}))
    version = mlflow.MlflowClient(result.tracking_uri).get_model_version_by_alias(job.name, "candidate")
    assert int(version.version) == result.version == 1
    return result


@pytest.mark.parametrize(
    ("file", "options"),
    [("na", {}), pytest.param("thousands", {"data.thousands": ","}, marks=pytest.mark.slow)],
)
def test_csv_numbers(file: str, options: dict[str, str], make_case: MakeCase, storage: Path) -> None:
    """R² was 0.23 with the numbers as categories."""
    folder = make_case("csv-numbers")
    result = train(folder / "job.yaml", storage, options, F=f"{file}.csv")
    assert result.metrics["price/r2"] > 0.99


def test_sixteen_bit_pictures(make_case: MakeCase, storage: Path) -> None:
    """Accuracy was 0.57 with 8 bits."""
    folder = make_case("sixteen-bit-pictures")
    result = train(folder / "job.yaml", storage, KIND="12bit")
    assert result.metrics["finding/accuracy"] > 0.95


def test_column_names(make_case: MakeCase, storage: Path) -> None:
    """Columns `Age (years)` and `Income, €`; accuracy is above that of the larger class."""
    result = train(
        make_case("column-names") / "job.yaml", storage, {"train.epochs": 8, "train.batch_size": 8}
    )
    assert result.metrics["churn/accuracy"] > 0.6


def test_many_inputs(make_case: MakeCase, storage: Path) -> None:
    """Of 255 subsets of 8 inputs a bounded number is evaluated, and the model is registered."""
    result = train(make_case("many-inputs", "8") / "job.yaml", storage)
    single = {f"question_{number}" for number in range(1, 9)}
    assert single < set(result.by_inputs)
    assert 8 + 8 < len(result.by_inputs) < 40


def test_class_names_and_pyfunc_training_rows(make_case: MakeCase, storage: Path) -> None:
    """Classes `C++` and `C#`, from MLflow's function of the rows that the model was trained on."""
    folder = make_case("column-names")
    result = train(folder / "labels.yaml", storage)
    function = mlflow.pyfunc.load_model(result.uri)
    frame = pd.read_csv(folder / "labels.csv").head(4)
    found = function.predict(frame[["age"]])
    assert set(found["language/label"]) <= {"C++", "C#"}
    by_input = function.predict(pd.DataFrame({"customer": frame[["age"]].to_dict("records")}))
    pd.testing.assert_frame_equal(found, by_input)
    assert "language/label" in function.metadata.signature.outputs.input_names()
