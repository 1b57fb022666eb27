"""DeepSpeed's configuration of a job."""

from collections.abc import Mapping
from typing import Any

from rayfuse.data.json_files import read_json_object
from rayfuse.errors import SpecError
from rayfuse.spec.deepspeed import DeepSpeedConfig
from rayfuse.spec.job import Job

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


def micro_batch_size(job: Job, world_size: int) -> int:
    """Return the maximum number of rows in a micro-batch of a worker."""
    return -(-job.train.batch_size // (world_size * job.train.gradient_accumulation_steps))
