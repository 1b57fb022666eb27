"""Initial adapter weights computed from training rows (EVA, CorDA, LoRA-GA)."""

from functools import partial

import torch

from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.errors import DataError
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.encoders.lora_init import INITIALIZERS, LoraInitializer
from rayfuse.model.fused import FusedModel
from rayfuse.spec.encoders import LoraAdapterConfig
from rayfuse.training.deepspeed_config import micro_batch_size
from rayfuse.training.evaluator import Evaluator
from rayfuse.training.precision import DTYPES


def initial_adapter_tensors(
    model: FusedModel, precision: str, evaluator: Evaluator
) -> dict[str, torch.Tensor]:
    """Compute the initial tensors of adapters by name; every rank must call it, and all ranks get the same.

    The model is not changed. Raises DataError if the rows do not determine an adapter.
    """
    found: dict[str, torch.Tensor] = {}
    for path, encoder in model.named_modules():
        adapter = encoder.options.adapter if isinstance(encoder, HuggingFaceEncoder) else None
        if not isinstance(adapter, LoraAdapterConfig) or adapter.init_lora_weights not in INITIALIZERS:
            continue
        initializer = INITIALIZERS[adapter.init_lora_weights](encoder)
        _, name, *_ = path.split(".")
        _accumulate_statistics(initializer, name, model, precision, evaluator, adapter.init_samples)
        for statistic in initializer.statistics.values():
            evaluator.context.all_reduce_(statistic)
        try:
            tensors = dict(initializer.initial_tensors())
        except DataError as error:
            raise DataError(f"inputs.{name}: {error}") from None
        for tensor in tensors.values():
            evaluator.context.broadcast_(tensor)  # decompositions may differ between machines
        found |= {f"{path}.{name}": tensor for name, tensor in tensors.items()}
    return found


def _accumulate_statistics(
    initializer: LoraInitializer,
    name: str,
    model: FusedModel,
    precision: str,
    evaluator: Evaluator,
    max_rows: int,
) -> None:
    """Accumulate statistics of an input's encoder over rows, in batches of the size of a training step."""
    model.eval()
    for batch in evaluator.batches(
        "train", max_rows, micro_batch_size(evaluator.job, evaluator.context.world_size)
    ):
        moved = batch.to(evaluator.context.device)
        loss = partial(_loss, model, precision, moved)
        if (counts := _value_counts(moved.inputs[name])).any():
            initializer.accumulate(loss, counts)
        else:  # other ranks wait for this one in collectives, but dummy features must not count
            with torch.no_grad():
                loss()


def _value_counts(part: EncoderBatch) -> torch.Tensor:
    """Count each distinct value of an input in a batch, int64 (values,); of a video, each frame without padding."""
    features = part.features or {}
    values = max((len(tensor) for tensor in features.values()), default=0)
    counts = torch.bincount(part.index[part.index >= 0], minlength=values)
    if "frame_mask" in features:
        counts = counts.unsqueeze(1) * features["frame_mask"]
    return counts.flatten()


def _loss(model: FusedModel, precision: str, batch: Batch) -> torch.Tensor:
    """Compute the loss without DeepSpeed's engine, which expects a backward pass through itself."""
    dtype = DTYPES[precision]
    with torch.autocast(batch.weights.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return model.total_loss(model.losses(model(batch), batch), batch)
