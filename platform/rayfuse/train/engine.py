"""A DeepSpeed engine around a job's model."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from rayfuse.data.files import read_file
from rayfuse.errors import RayfuseError, SpecError
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.spec.deepspeed import DeepSpeed
from rayfuse.spec.job import Job
from rayfuse.train.activation_checkpointing import checkpoint_activations
from rayfuse.train.build_locks import remove_stale
from rayfuse.train.groups import parameter_groups
from rayfuse.train.optimizers import build_optimizer
from rayfuse.train.precision import round_frozen

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

_LOG = logging.getLogger(__name__)

_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def read_options(job: Job) -> dict[str, Any]:
    """The job's DeepSpeed options in DeepSpeed's own layout.

    Raises SpecError where a DeepSpeed file cannot be read or sets what a field of the job sets.
    """
    options = job.train.deepspeed
    if isinstance(options, DeepSpeed):
        return {"zero_optimization": _zero_options(options)}
    content = _without_auto(_read_json(options))
    for key in content:
        if key in _OURS:
            raise SpecError(
                f"train.deepspeed: {options}: `{key}` is set by {_OURS[key]} of the job; remove it"
            )
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise SpecError(f"train.deepspeed: {options}: zero_optimization.stage: {stage!r} is not 0, 1, 2 or 3")
    for path, reason in job.stage_problems(stage):
        raise SpecError(f"{path}: {options}: {reason}")
    return content


def stage_of(options: Mapping[str, Any]) -> int:
    """The ZeRO stage that DeepSpeed's options ask for."""
    return int(options.get("zero_optimization", {}).get("stage", 0))


def _zero_options(options: DeepSpeed) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": options.stage}
    if options.offload.optimizer:
        zero["offload_optimizer"] = {"device": options.offload.optimizer}
    if options.offload.parameters:
        zero["offload_param"] = {"device": options.offload.parameters}
    return zero


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


def _shares_only(options: DeepSpeed | str) -> bool:
    """Whether the job's own options ask for nothing but to share state with other workers."""
    return isinstance(options, DeepSpeed) and options.stage in (1, 2) and not options.offload.optimizer


def full_config(
    job: Job, options: Mapping[str, Any], world: int, precision: str, trainable: int
) -> dict[str, Any]:
    """DeepSpeed's configuration. `trainable` numbers bound its buffers, whose defaults suit giant models.

    One worker shares with nobody, so that stages 1 and 2 of the job's own options are stage 0 without the detour
    through flat copies; a DeepSpeed file, and what is offloaded, stay as they are.
    """
    bucket = 1 << max(20, trainable.bit_length())  # DeepSpeed wants a multiple of small powers of two
    zero = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        **options.get("zero_optimization", {}),
    }
    if world == 1 and _shares_only(job.train.deepspeed):
        zero["stage"] = 0
    config: dict[str, Any] = {
        "steps_per_print": 2**31,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU at every step
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,  # what does not work under a stage, the spec refuses
        **options,
        "train_micro_batch_size_per_gpu": micro_batch(job, world),
        "gradient_accumulation_steps": job.train.accumulate,
        "gradient_clipping": job.train.clip or 0.0,
        "zero_optimization": zero,
    }
    if precision in _DTYPE_NAMES:
        config["torch_autocast"] = {"enabled": True, "dtype": _DTYPE_NAMES[precision]}
    return config


def create_model(job: Job, options: Mapping[str, Any], world: int, precision: str) -> FusedModel:
    """The job's model; under ZeRO stage 3 the pretrained parts are divided among the workers as they are read.

    So no worker ever holds one whole, and all weights stay float32. Else frozen ones are rounded, see `round_frozen`.
    Every rank must call it.
    """
    if stage_of(options) != 3:
        model = FusedModel(job)
        round_frozen(model, precision)
        return model
    _prepare_deepspeed(job)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = full_config(job, options, world, precision, trainable=0)
    chance = torch.get_rng_state()
    sharding = HfDeepSpeedConfig(config)  # from_pretrained looks for it as long as it lives
    try:
        return FusedModel(job)
    except RayfuseError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers 5.23 looks at weights it has divided, as at Whisper's
        _LOG.warning(
            "a pretrained encoder cannot be divided as it is read (%s: %s); every worker reads it whole first",
            type(error).__name__,
            error,
        )
    finally:
        del sharding
    torch.set_rng_state(chance)
    return FusedModel(job)


def build_engine(job: Job, model: nn.Module, options: Mapping[str, Any], world: int, precision: str) -> Any:
    """Wrap the model in a DeepSpeed engine with the job's optimizer; every rank must call it."""
    _prepare_deepspeed(job)
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError

    if isinstance(job.train.deepspeed, str):
        remove_stale()  # only a file can ask for operators that are compiled
    if job.train.activation_checkpointing:
        checkpoint_activations(model)
    trainable = sum(size_of(parameter) for parameter in trainable_parameters(model).values())
    optimizer = build_optimizer(job.train.optimizer, parameter_groups(job, model))
    config = full_config(job, options, world, precision, trainable)
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except (DeepSpeedConfigError, ValidationError) as error:
        raise SpecError(f"train.deepspeed: DeepSpeed refuses its options: {error}") from None
    if engine.zero_optimization_stage() == 0:
        _streamline(engine, world)
    return engine


def micro_batch(job: Job, world: int) -> int:
    """The most rows that a worker has in memory at a time."""
    return -(-job.train.batch_size // (world * job.train.accumulate))


def size_of(parameter: nn.Parameter) -> int:
    """Numbers in a whole parameter, also where this worker holds a part of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _prepare_deepspeed(job: Job) -> None:
    """Set what DeepSpeed reads when it is first imported."""
    if not job.compute.gpus_per_worker:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # DeepSpeed would compile a shared-memory all-reduce for CPUs with g++ at the first start (over a minute),
    # and a process killed meanwhile leaves a lock on which every later start waits. Gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logging.logger.setLevel("WARNING")


def _streamline(engine: Any, world: int) -> None:
    """Replace what stage 0 does tensor by tensor, walking the whole model, with fewer and larger operations."""
    parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    def fill(grads: Any = None, elements_per_buffer: int = 0) -> None:
        """What is left of reducing gradients with nobody: a parameter without one has a gradient of zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    engine.clip_fp32_gradients, engine.zero_grad = clip, zero_grad
    if world == 1:
        engine.buffered_allreduce_fallback = fill


def set_learning_rate(engine: Any, factor: float) -> None:
    """Scale every group's own rate by `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
