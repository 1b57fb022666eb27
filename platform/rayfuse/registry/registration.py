"""Registration of model folders as versions in MLflow."""

import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse import __version__
from rayfuse.registry.download import ARTIFACT_PATH, folder_digest
from rayfuse.registry.mlflow_connection import default_tracking_uri, long_timeout
from rayfuse.registry.mlflow_errors import is_existing, translate_errors
from rayfuse.registry.run_params import mlflow_names
from rayfuse.registry.run_tags import DESCRIPTION_TAG
from rayfuse.registry.versions import (
    CANDIDATE,
    FOLDER_DIGEST_TAG,
    RECORD_TAG,
    versions,
)
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_CODE = Path(__file__).with_name("model_code.py")


def register(
    client: "MlflowClient",
    run_id: str,
    job: Job,
    folder: Path,
    metrics: Mapping[str, Mapping[str, float]],
    evaluation: Mapping[str, Any],
    digests: Mapping[str, str] | None = None,
    card: Callable[[int], str] | None = None,
) -> int:
    """Register a model folder as the next version of the job's model, with the alias `candidate`; return its number.

    `metrics`: by split; `evaluation`: {"split", "metrics", "by_inputs"} on the rows that gates compare; `digests`:
    content hash of the rows by split; `card`: returns the model card of a version, which is the description of the version
    and of its run. Registering the same folder of the same run again returns the same version, so
    that an interrupted command can be repeated.
    """
    name, digest = job.registered_model_name, folder_digest(folder)
    with translate_errors(client.tracking_uri), long_timeout(), default_tracking_uri(client.tracking_uri):
        ensure_registered_model(client, name)
        version = _find_registered_version(client, name, run_id, digest)
        if version is None:
            model_id = _log_model(client, run_id, job, folder)
            _log_metrics(client, run_id, model_id, evaluation)
            record = _log_record(client, run_id, job, metrics, evaluation, digests or {}, digest)
            tags = {"rayfuse.version": __version__, RECORD_TAG: record, FOLDER_DIGEST_TAG: digest}
            created = client.create_model_version(
                name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id
            )
            version = int(created.version)
        if card is not None:
            client.update_model_version(name, str(version), card(version))
            client.set_tag(run_id, DESCRIPTION_TAG, card(version))
        client.set_registered_model_alias(name, CANDIDATE, str(version))
    return version


def _log_record(
    client: "MlflowClient",
    run_id: str,
    job: Job,
    metrics: Mapping[str, Mapping[str, float]],
    evaluation: Mapping[str, Any],
    digests: Mapping[str, str],
    folder_digest: str,
) -> str:
    """Log the record of a version, which gates compare, as an artifact of its run; return its path."""
    split = evaluation["split"]
    record = {
        "split": split,
        "selection_metric": job.selection_metric,
        "mode": job.metric_modes()[job.selection_metric],
        "metric_modes": job.metric_modes(),
        "required_inputs": [name for name, options in job.inputs.items() if not options.optional],
        "metrics": {**metrics, split: evaluation["metrics"]},
        "by_inputs": evaluation["by_inputs"],
        "digests": dict(digests),
    }
    file = f"versions/{folder_digest}.json"
    client.log_text(run_id, json.dumps(record, indent=1), file)
    return file


def ensure_registered_model(client: "MlflowClient", name: str) -> None:
    """Create a registered model unless it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if not is_existing(error):
            raise


def _find_registered_version(client: "MlflowClient", name: str, run_id: str, digest: str) -> int | None:
    same = (v for v in versions(client, name) if v.run_id == run_id and v.folder_digest == digest)
    return next((v.version for v in same), None)


def _log_model(client: "MlflowClient", run_id: str, job: Job, folder: Path) -> str:
    """Log the folder as an MLflow model of the run; return the ID of the model."""
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
    """Write a model folder as an MLflow python function below `work`, with safetensors and no pickle; return its folder."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from rayfuse.registry.pyfunc import ARTIFACT, MEDIA_FOLDER, example_rows, signature

    target, source = work / "mlflow", folder.resolve()
    name = ARTIFACT_PATH.rpartition("/")[2]
    if source.name != name:  # MLflow uses the folder's own name, and rejects links
        source = Path(shutil.copytree(folder, work / name))
    with warnings.catch_warnings():
        # MLflow warns if there is no input example, as for models that require an image or another file.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            target,
            python_model=str(_CODE),
            artifacts={ARTIFACT: str(source)},
            signature=signature(job),
            input_example=example_rows(job),
            model_config={MEDIA_FOLDER: None},
            pip_requirements=pip_requirements(),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        )
    _strip_local_paths(target)
    return target


def _strip_local_paths(saved: Path) -> None:
    """Remove the paths of this machine that MLflow has written to `MLmodel`."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME

    model = Model.load(str(saved))
    flavor = model.flavors[FLAVOR_NAME]
    flavor["model_code_path"] = _CODE.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(saved / "MLmodel"))


def pip_requirements(extras: Sequence[str] = ("serve",)) -> list[str]:
    """Return the requirements of a process that loads a model: the extras in the installed versions, and torch."""
    names = [*(name for extra in extras for name in _extra_requirements(extra)), "torch"]
    pinned = [
        f"{name}=={version.partition('+')[0]}" for name in names if (version := _installed_version(name))
    ]
    return [f"rayfuse=={__version__}", *sorted(set(pinned))]


def _extra_requirements(extra: str) -> list[str]:
    """Return the distributions that an extra of this package requires, directly or through another extra."""
    from packaging.requirements import Requirement

    try:
        lines = packages.requires("rayfuse") or []
    except packages.PackageNotFoundError:  # a checkout that is not installed
        _log.warning("rayfuse is not installed, so the model has no list of requirements")
        return []
    found: list[str] = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "rayfuse":
                found += [name for inner in requirement.extras for name in _extra_requirements(inner)]
            else:
                found.append(requirement.name)
    return found


def _installed_version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _log_metrics(client: "MlflowClient", run_id: str, model_id: str, evaluation: Mapping[str, Any]) -> None:
    """Log the evaluation to the model and its run."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    # The run has validation metrics by epoch; these are of its best checkpoint.
    prefix = "best_validation" if evaluation["split"] == "validation" else evaluation["split"]
    values = {f"{prefix}/{name}": float(value) for name, value in evaluation["metrics"].items()}
    names = mlflow_names(values)
    metrics = [
        Metric(names[name], value, now, 0, model_id=model_id, run_id=run_id) for name, value in values.items()
    ]
    client.log_batch(run_id, metrics=metrics)
