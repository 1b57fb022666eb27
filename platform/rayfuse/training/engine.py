"""Build a job's model and the DeepSpeed engine that trains it."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from rayfuse.errors import RayfuseError, SpecError
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.training.activation_checkpointing import checkpoint_activations
from rayfuse.training.context_check import check_context_lengths
from rayfuse.training.deepspeed_config import build_deepspeed_config, zero_stage
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

_LOG = logging.getLogger(__name__)


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
