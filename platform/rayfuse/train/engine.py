"""A DeepSpeed engine around a job's model."""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from rayfuse.data.files import read_file
from rayfuse.errors import SpecError
from rayfuse.model.encoders.stack import depths_from_top
from rayfuse.model.fused import trainable_parameters
from rayfuse.spec.encoders import LayeredEncoder, encoders_in
from rayfuse.spec.job import Job
from rayfuse.spec.train import NO_EMA, DeepSpeed

_OURS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size and train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_clipping": "train.clip",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}
"""Keys of a DeepSpeed file that the job's own fields decide."""

_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def read_options(job: Job) -> dict[str, Any]:
    """The job's DeepSpeed options in DeepSpeed's own layout.

    Raises SpecError where a DeepSpeed file cannot be read or sets what a field of the job sets.
    """
    options = job.train.deepspeed
    if isinstance(options, DeepSpeed):
        return {"zero_optimization": {"stage": options.stage}}
    content = _without_auto(_read_json(options))
    for key in content:
        if key in _OURS:
            raise SpecError(
                f"train.deepspeed: {options}: `{key}` is set by {_OURS[key]} of the job; remove it"
            )
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage == 3 and job.train.ema:
        raise SpecError(f"train.ema: {options}: {NO_EMA}")
    if stage not in (0, 1, 2, 3):
        raise SpecError(f"train.deepspeed: {options}: zero_optimization.stage: {stage!r} is not 0, 1, 2 or 3")
    return content


def _read_json(url: str) -> dict[str, Any]:
    try:
        text = read_file(url)
    except FileNotFoundError:
        raise SpecError(f"train.deepspeed: {url}: no such file") from None
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        raise SpecError(f"train.deepspeed: {url}: cannot be read: {type(error).__name__}: {error}") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SpecError(f"train.deepspeed: {url}: not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization", {}), dict):
        raise SpecError(f"train.deepspeed: {url}: it and its zero_optimization must be JSON objects, {{…}}")
    return content


def _without_auto(node: dict[str, Any]) -> dict[str, Any]:
    """Files made for Hugging Face's Trainer say `auto` where the trainer decides; here the job does."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if value != "auto"
    }


def full_config(
    job: Job, options: Mapping[str, Any], world: int, precision: str, trainable: int
) -> dict[str, Any]:
    """DeepSpeed's configuration. `trainable` numbers bound its buffers, whose defaults suit giant models."""
    micro = -(-job.train.batch_size // (world * job.train.accumulate))
    bucket = 1 << max(20, trainable.bit_length())  # DeepSpeed wants a multiple of small powers of two
    zero = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        **options.get("zero_optimization", {}),
    }
    config: dict[str, Any] = {
        "steps_per_print": 2**31,
        "zero_force_ds_cpu_optimizer": False,
        **options,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": job.train.accumulate,
        "gradient_clipping": job.train.clip or 0.0,
        "zero_optimization": zero,
    }
    if precision in _DTYPE_NAMES:
        config["torch_autocast"] = {"enabled": True, "dtype": _DTYPE_NAMES[precision]}
    return config


def parameter_groups(job: Job, model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; norms, biases and single vectors do not decay."""
    rates = _encoder_rates(job, model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model).items():
        lr = rates.get(name, job.train.optimizer.lr)
        decay = job.train.optimizer.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay, "base_lr": lr}
        for (lr, decay), parameters in groups.items()
    ]


def _encoder_rates(job: Job, model: nn.Module) -> dict[str, float]:
    """Learning rates of the encoders' parameters by name: each encoder's own, and an inner encoder's inside it."""
    rates: dict[str, float] = {}
    for name, source in job.inputs.items():
        lr = job.train.optimizer.lr
        for path, options in encoders_in(source.encoder):
            prefix = ".".join(["encoders", name, *path])
            lr = options.lr or lr
            factor = options.layer_decay if isinstance(options, LayeredEncoder) else 1.0
            depths = depths_from_top(model.get_submodule(prefix))
            rates |= {f"{prefix}.{inner}": lr * factor**depth for inner, depth in depths.items()}
    return rates


def build_optimizer(job: Job, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The job's optimizer over groups of parameters."""
    adamw = job.train.optimizer
    return torch.optim.AdamW(groups, betas=adamw.betas, eps=adamw.eps)


def build_engine(job: Job, model: nn.Module, options: Mapping[str, Any], world: int, precision: str) -> Any:
    """Wrap the model in a DeepSpeed engine with AdamW; every rank must call it."""
    if not job.compute.gpus_per_worker:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.config import DeepSpeedConfigError

    # DeepSpeed would compile a shared-memory all-reduce for CPUs with g++ at the first start (over a minute),
    # and a process killed meanwhile leaves a lock on which every later start waits. Gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logging.logger.setLevel("WARNING")
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    optimizer = build_optimizer(job, parameter_groups(job, model))
    config = full_config(job, options, world, precision, trainable)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (DeepSpeedConfigError, ValidationError) as error:
        raise SpecError(f"train.deepspeed: DeepSpeed refuses its options: {error}") from None
    return engine


def set_learning_rate(engine: Any, factor: float) -> None:
    """Scale every group's own rate by `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
