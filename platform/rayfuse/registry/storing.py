"""Bring model folders into MLflow as registered versions."""

import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse import __version__
from rayfuse.registry.fetching import ARTIFACT_FOLDER, folder_digest
from rayfuse.registry.tracking import as_default, explained, patient
from rayfuse.registry.versions import (
    BY_INPUTS_TAG,
    CANDIDATE,
    DIGESTS_TAG,
    FOLDER_TAG,
    JUDGED_TAG,
    METRICS_TAG,
    versions,
)
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CODE = Path(__file__).with_name("model_code.py")


def register(
    client: "MlflowClient",
    run_id: str,
    job: Job,
    folder: Path,
    metrics: Mapping[str, Mapping[str, float]],
    evaluation: Mapping[str, Any],
    digests: Mapping[str, str] | None = None,
) -> int:
    """Register a model folder as the next version of the job's model, with the alias `candidate`; returns its number.

    `metrics`: by split; `evaluation`: {"split", "metrics", "by_inputs"} on the rows that the model is judged on;
    `digests`: content hash of the rows of each split. Registering the same folder of the same run again gives the
    same version, so that a command that was cut off can be repeated.
    """
    name, digest = job.registered_name, folder_digest(folder)
    judged = {
        "split": evaluation["split"],
        "metric": job.chosen_by,
        "mode": job.metrics()[job.chosen_by],
        "required": [name for name, options in job.inputs.items() if not options.optional],
    }
    tags = {
        "rayfuse.version": __version__,
        FOLDER_TAG: digest,
        JUDGED_TAG: json.dumps(judged),
        METRICS_TAG: json.dumps({**metrics, evaluation["split"]: evaluation["metrics"]}),
        BY_INPUTS_TAG: json.dumps(evaluation["by_inputs"]),
        DIGESTS_TAG: json.dumps(dict(digests or {})),
    }
    with explained(client.tracking_uri), patient(), as_default(client.tracking_uri):
        _make_registered_model(client, name)
        version = _registered_before(client, name, run_id, digest)
        if version is None:
            model_id = _log_model(client, run_id, job, folder)
            _log_metrics(client, run_id, model_id, evaluation)
            found = client.create_model_version(
                name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id
            )
            version = int(found.version)
        client.set_registered_model_alias(name, CANDIDATE, str(version))
    return version


def _make_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise


def _registered_before(client: "MlflowClient", name: str, run_id: str, digest: str) -> int | None:
    same = (v for v in versions(client, name) if v.run_id == run_id and v.folder_digest == digest)
    return next((v.version for v in same), None)


def _log_model(client: "MlflowClient", run_id: str, job: Job, folder: Path) -> str:
    """Store the folder as an MLflow model of the run; returns the model's id."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=job.name,
        source_run_id=run_id,
        tags={"rayfuse.version": __version__},
        params=dict(run.data.params),
        model_type="rayfuse",
    )
    model_id = str(logged.model_id)
    try:
        with tempfile.TemporaryDirectory(prefix="rayfuse-register-") as work:
            saved = save_pyfunc(Path(work), job, folder, model_id, run_id)
            client.log_model_artifacts(model_id, str(saved))
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id


def save_pyfunc(
    work: Path, job: Job, folder: Path, model_id: str | None = None, run_id: str | None = None
) -> Path:
    """Write a model folder as an MLflow python function below `work`: code and safetensors, no pickle."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from rayfuse.registry.pyfunc import ARTIFACT, signature

    target, source = work / "mlflow", folder.resolve()
    name = ARTIFACT_FOLDER.rpartition("/")[2]
    if source.name != name:  # MLflow keeps the folder's own name, and refuses links
        source = Path(shutil.copytree(folder, work / name))
    with warnings.catch_warnings():
        # It misses an example, which would be a picture or a recording in a text file.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            target,
            python_model=str(_CODE),
            artifacts={ARTIFACT: str(source)},
            signature=signature(job.inputs),
            pip_requirements=requirements(),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        )
    _forget_paths(target)
    return target


def _forget_paths(saved: Path) -> None:
    """MLflow notes where code and folder lay on this machine, which no other one needs to know."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME

    model = Model.load(str(saved))
    flavor = model.flavors[FLAVOR_NAME]
    flavor["model_code_path"] = _CODE.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(saved / "MLmodel"))


def requirements() -> list[str]:
    """What a process needs to load a model: the serving extra as installed here, and torch."""
    names = [*_extra("serve"), "torch"]
    pinned = [f"{name}=={version.partition('+')[0]}" for name in names if (version := _installed(name))]
    return [f"rayfuse=={__version__}", *sorted(set(pinned))]


def _extra(extra: str) -> list[str]:
    """Distributions that an extra of this package names, itself or through another extra."""
    from packaging.requirements import Requirement

    try:
        lines = packages.requires("rayfuse") or []
    except packages.PackageNotFoundError:  # run from a checkout that is not installed
        logging.getLogger("rayfuse").warning("rayfuse is not installed, so the model lists no requirements")
        return []
    found: list[str] = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "rayfuse":
                found += [name for inner in requirement.extras for name in _extra(inner)]
            else:
                found.append(requirement.name)
    return found


def _installed(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _log_metrics(client: "MlflowClient", run_id: str, model_id: str, evaluation: Mapping[str, Any]) -> None:
    """Show what the model measured beside it, and in the run."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    # The run has a history of validation metrics already; these belong to its best checkpoint.
    prefix = "best_validation" if evaluation["split"] == "validation" else evaluation["split"]
    metrics = [
        Metric(f"{prefix}/{name}", float(value), now, 0, model_id=model_id, run_id=run_id)
        for name, value in evaluation["metrics"].items()
    ]
    client.log_batch(run_id, metrics=metrics)
