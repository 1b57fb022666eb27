"""Configurations of trials: their jobs, fitted to the rows that all trials share, and their planned memory."""

import logging
from dataclasses import dataclass
from typing import Any

from rayfuse.data.dataset import Dataset
from rayfuse.estimate.comparison import predict_peak_bytes
from rayfuse.spec.job import Job
from rayfuse.spec.search_space import SearchSpace, Values
from rayfuse.tuning.trials import Trial, Trials

_LOG = logging.getLogger(__name__)


@dataclass
class SharedData:
    """Rows that all trials share."""

    job: Job
    """The job of a trial, as the spec has it."""
    fitted_job: Job
    """The same job after fitting it to the rows."""
    dataset: Dataset
    """The rows, validated for that job."""


class TrialConfigBuilder:
    """Builds the configuration that `run_trial` gets."""

    def __init__(self, space: SearchSpace, data: SharedData, trials: Trials) -> None:
        self._space, self._data, self._trials = space, data, trials

    def estimate_memory(self, values: Values) -> int | None:
        """Return the planned peak bytes of a worker without its process; None where it is unknown."""
        job, reload_data = self._job(values)
        if reload_data:
            return None
        try:
            return predict_peak_bytes(job, self._data.dataset.splits["train"], 0)
        except Exception as error:  # noqa: BLE001 - a failed estimate must not end the sweep
            _LOG.debug("%s: memory cannot be estimated: %s", values, error)
            return None

    def _job(self, values: Values) -> tuple[Job, bool]:
        """Return the job of a trial, and whether it has to read its rows itself; otherwise the job is fitted."""
        job = self._space.trial_job(values)
        if _data_config(job) != _data_config(self._data.job):
            return job, True
        return with_fitted_parts(job, self._data.fitted_job), False

    def build(self, trial: Trial) -> dict[str, Any]:
        """Create the trial's folder, mark the trial as running, and return its configuration."""
        job, reload_data = self._job(trial.values)
        # Ray Train would also retry failures that occur again, such as a NaN loss; Tune retries only the others.
        job = job.model_copy(update={"compute": job.compute.model_copy(update={"max_failures": 0})})
        run = self._trials.run_folder(trial)
        run.create()
        run.write("job.json", job.model_dump_json(indent=1))
        trial.state = "running"
        self._trials.save(trial)
        return {
            "number": trial.number,
            "job": job.model_dump_json(),
            "url": run.url,
            "metric": self._space.sweep.metric,
            "reload_data": reload_data,
        }


def _data_config(job: Job) -> dict[str, Any]:
    """Return the parts of a job that decide which rows are valid, and what is stored about them."""
    tasks = {name: task.model_dump(exclude={"weight"}) for name, task in job.tasks.items()}
    inputs = {
        name: {**options.model_dump(exclude={"encoder", "augment"}), "encoder": options.encoder.fit_options}
        for name, options in job.inputs.items()
    }
    stored = {"group_by_length": job.train.group_by_length}
    return {
        "data": job.data.model_dump(exclude={"feature_cache"}),
        "inputs": inputs,
        "tasks": tasks,
        **stored,
    }


def with_fitted_parts(job: Job, fitted: Job) -> Job:
    """Return the job of a trial with the inputs and tasks of the fitted job, whose data it shares."""
    inputs = {
        name: source.model_copy(
            update={
                "encoder": job.inputs[name].encoder.with_fitted(source.encoder),
                "augment": job.inputs[name].augment,
            }
        )
        for name, source in fitted.inputs.items()
    }
    tasks = {
        name: fitted.tasks[name].model_copy(update={"weight": task.weight})
        for name, task in job.tasks.items()
    }
    return job.model_copy(update={"inputs": inputs, "tasks": tasks})
