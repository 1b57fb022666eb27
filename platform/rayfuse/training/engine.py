"""Build a job's model and the DeepSpeed engine that trains it."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from rayfuse.data.json_files import read_json_object
from rayfuse.errors import RayfuseError, SpecError
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.spec.deepspeed import DeepSpeedConfig
from rayfuse.spec.job import Job
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.activation_checkpointing import checkpoint_activations
from rayfuse.training.context_check import check_context_lengths
from rayfuse.training.deepspeed_patches import (
    check_version,
    disable_shared_memory_allreduce,
    optimize_stage_zero,
)
from rayfuse.training.extension_locks import remove_stale_locks
from rayfuse.training.optimizers import build_optimizer
from rayfuse.training.param_groups import build_param_groups
from rayfuse.training.precision import DTYPES, cast_frozen_weights
from rayfuse.training.training_spans import apply_spans

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_JOB_CONTROLLED_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size and train.gradient_accumulation_steps",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}
"""Keys of a DeepSpeed file that fields of the job set instead."""

_LOG = logging.getLogger(__name__)

_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def load_deepspeed_config(job: Job) -> dict[str, Any]:
    """Return the job's DeepSpeed options as DeepSpeed's configuration, before the job's other fields are added.

    Raises SpecError if a DeepSpeed file cannot be read or has a key that a field of the job sets.
    """
    options = job.train.deepspeed
    if isinstance(options, DeepSpeedConfig):
        return {"zero_optimization": _zero_config(options)}
    content = _drop_auto(_read_options(options))
    for key in content:
        if key in _JOB_CONTROLLED_KEYS:
            raise SpecError(
                f"train.deepspeed: {options}: `{key}` is set by {_JOB_CONTROLLED_KEYS[key]} of the job; remove it"
            )
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise SpecError(f"train.deepspeed: {options}: zero_optimization.stage: {stage!r} is not 0, 1, 2 or 3")
    for path, reason in job.validate_zero_stage(stage):
        raise SpecError(f"{path}: {options}: {reason}")
    return content


def zero_stage(options: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return int(options.get("zero_optimization", {}).get("stage", 0))


def _zero_config(options: DeepSpeedConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": options.stage}
    if options.offload.optimizer:
        zero["offload_optimizer"] = {"device": options.offload.optimizer}
    if options.offload.parameters:
        zero["offload_param"] = {"device": options.offload.parameters}
    return zero


def _read_options(url: str) -> dict[str, Any]:
    try:
        content = read_json_object(url)
    except SpecError as error:
        raise SpecError(f"train.deepspeed: {error}") from None
    if not isinstance(content.get("zero_optimization", {}), dict):
        raise SpecError(f"train.deepspeed: {url}: zero_optimization must be a JSON object")
    return content


def _drop_auto(node: dict[str, Any]) -> dict[str, Any]:
    """Remove `auto` values, with which files for Hugging Face's Trainer leave a key to the trainer."""
    return {
        key: _drop_auto(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if value != "auto"
    }


def _only_shards_state(options: DeepSpeedConfig | str) -> bool:
    """Return whether the options only shard state over workers (ZeRO stage 1 or 2 without offload)."""
    return isinstance(options, DeepSpeedConfig) and options.stage in (1, 2) and not options.offload.optimizer


def build_deepspeed_config(
    job: Job, options: Mapping[str, Any], world_size: int, precision: str, trainable_numel: int
) -> dict[str, Any]:
    """Return DeepSpeed's full configuration of a job.

    `options` is the result of `load_deepspeed_config`. `trainable_numel`, the number of trainable elements, bounds
    buffers whose defaults suit very large models. With one worker, stages 1 and 2 of the job's own options become
    stage 0, which computes the same without flat copies; a DeepSpeed file and offloaded state stay as they are.
    """
    bucket = 1 << max(20, trainable_numel.bit_length())  # a multiple of small powers of two
    zero = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        **options.get("zero_optimization", {}),
    }
    if world_size == 1 and _only_shards_state(job.train.deepspeed):
        zero["stage"] = 0
    config: dict[str, Any] = {
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it synchronizes the GPU at every step
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,  # the spec rejects optimizers that do not work under a stage
        **options,
        "train_micro_batch_size_per_gpu": micro_batch_size(job, world_size),
        "gradient_accumulation_steps": job.train.gradient_accumulation_steps,
        "gradient_clipping": job.train.max_grad_norm or 0.0,
        "zero_optimization": zero,
    }
    if precision in _DTYPE_NAMES:
        config["torch_autocast"] = {"enabled": True, "dtype": _DTYPE_NAMES[precision]}
    return config


def create_model(job: Job, options: Mapping[str, Any], world_size: int, precision: str) -> FusedModel:
    """Build the job's model; every rank must call it.

    Under ZeRO stage 3, weights of pretrained encoders are sharded while they are loaded, so that no worker holds a full
    encoder, and all weights stay float32. Under other stages, frozen weights are cast (`cast_frozen_weights`).
    """
    if zero_stage(options) != 3:
        model = FusedModel(job)
        cast_frozen_weights(model, precision)
        return model
    _prepare_deepspeed(job)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = build_deepspeed_config(job, options, world_size, precision, trainable_numel=0)
    rng_state = torch.get_rng_state()
    sharding = HfDeepSpeedConfig(config)  # from_pretrained reads it through a weak reference
    try:
        return FusedModel(job)
    except RayfuseError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers 5.23 reads weights it has sharded, such as Whisper's
        _LOG.warning(
            "A pretrained encoder cannot be sharded while it is loaded (%s: %s); every worker loads all of it first",
            type(error).__name__,
            error,
        )
    finally:
        del sharding
    torch.set_rng_state(rng_state)
    return FusedModel(job)


def build_engine(
    job: Job, model: nn.Module, options: Mapping[str, Any], world_size: int, precision: str
) -> "DeepSpeedEngine":
    """Wrap the model in a DeepSpeed engine with the job's optimizer; every rank must call it.

    Raises SpecError if DeepSpeed rejects the configuration or a language model cannot restrict its replies to a JSON
    schema, DataError if a prompt and reply exceed the context of their language model.
    """
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
        check_context_lengths(job, model)  # frozen layers have been cast
    _prepare_deepspeed(job)
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError

    if isinstance(job.train.deepspeed, str):
        remove_stale_locks()  # only such a file can enable operators that are compiled
    if job.train.activation_checkpointing:
        checkpoint_activations(model)
    trainable = sum(numel(parameter) for parameter in trainable_parameters(model).values())
    optimizer = build_optimizer(job.train.optimizer, build_param_groups(job, model))
    apply_spans(optimizer)
    config = build_deepspeed_config(job, options, world_size, precision, trainable)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (DeepSpeedConfigError, ValidationError) as error:
        raise SpecError(f"train.deepspeed: DeepSpeed rejects the configuration: {error}") from None
    if engine.zero_optimization_stage() == 0:
        optimize_stage_zero(engine, world_size)
    return engine


def micro_batch_size(job: Job, world_size: int) -> int:
    """Return the maximum number of rows in a micro-batch of a worker."""
    return -(-job.train.batch_size // (world_size * job.train.gradient_accumulation_steps))


def numel(parameter: nn.Parameter) -> int:
    """Return the number of elements of a full parameter, also if this worker holds a shard of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _prepare_deepspeed(job: Job) -> None:
    """Set what DeepSpeed reads when it is first imported, and apply the patches of the module."""
    if not job.compute.gpus_per_worker:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    check_version()
    disable_shared_memory_allreduce()
    deepspeed.utils.logging.logger.setLevel("WARNING")


def set_learning_rates(
    engine: "DeepSpeedEngine", schedule: ScheduleConfig, step: int, total_steps: int
) -> None:
    """Set learning rate and weight decay of every parameter group for `step`, from 0, of `total_steps`."""
    for group in engine.optimizer.param_groups:
        span = group["span"]
        group["lr"] = group["base_lr"] * span.lr_factor(schedule, step, total_steps)
        # SGD adds the decay to its momentum, whatever the learning rate is.
        group["weight_decay"] = group["base_weight_decay"] if span.is_active else 0.0


def zero_learning_rates(engine: "DeepSpeedEngine") -> None:
    """Set the learning rate of every parameter group to zero, for a step that changes nothing."""
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
