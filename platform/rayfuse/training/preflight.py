"""Validation of a job before Ray is started."""

from pathlib import Path

import torch

from rayfuse.data.preview import check_first_rows
from rayfuse.errors import DataError
from rayfuse.model.reply_grammar import check_tasks
from rayfuse.spec.job import Job
from rayfuse.training.deepspeed_config import load_deepspeed_config
from rayfuse.training.precision import choose_precision
from rayfuse.training.runs import check_storage


def preflight(job: Job) -> None:
    """Validate what would end the job later: storage, DeepSpeed options, precision, pretrained models, the first rows.

    Replies that a JSON schema does not let end within their tokens count as an invalid option.

    Raises:
        SpecError: An option is invalid on this machine.
        DataError: The first rows cannot be used, or the folder of a pretrained model is not one.
        ResourceError, UnavailableError: The storage is not writable.
    """
    check_storage(job.output.storage)
    load_deepspeed_config(job)
    if not job.compute.gpus_per_worker:
        choose_precision(job.train.precision, torch.device("cpu"))
    for path, options in job.pretrained_models():
        _check_pretrained(".".join([*path, "model"]), options.model)
    check_tasks(job)
    check_first_rows(job)


def _check_pretrained(path: str, model: str) -> None:
    if model.startswith("/") and not Path(model, "config.json").is_file():
        raise DataError(
            f"{path}: {model} is not a Hugging Face model: it has no config.json; check the path, or run "
            "`rayfuse demo --prepare` for the models of the demo"
        )
