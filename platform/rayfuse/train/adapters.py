"""Before the first step: what adapters begin with, where training rows tell it."""

from functools import partial

import torch

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.errors import DataError
from rayfuse.model.encoders.adapter_starts import STARTS, Start
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.fused import FusedModel
from rayfuse.spec.encoders import Lora
from rayfuse.train.engine import micro_batch
from rayfuse.train.evaluator import Evaluator
from rayfuse.train.precision import DTYPES


def adapter_beginnings(
    model: FusedModel, precision: str, evaluator: Evaluator, world: int
) -> dict[str, torch.Tensor]:
    """The tensors that adapters are to begin with, by name; every rank must call it, and all get the same.

    Nothing is changed. Raises DataError where the rows that were looked at tell too little.
    """
    found: dict[str, torch.Tensor] = {}
    for place, encoder in model.named_modules():
        adapter = encoder.options.adapter if isinstance(encoder, HuggingFaceEncoder) else None
        if not isinstance(adapter, Lora) or adapter.init not in STARTS:
            continue
        start = STARTS[adapter.init](encoder)
        _, name, *_ = place.split(".")
        _look_at_rows(start, name, model, precision, evaluator, adapter.init_rows)
        if world > 1:
            for observed in start.observed.values():
                torch.distributed.all_reduce(observed)
        try:
            begun = dict(start.tensors())
        except DataError as error:
            raise DataError(f"inputs.{name}: {error}") from None
        if world > 1:  # another machine may decompose otherwise
            for tensor in begun.values():
                torch.distributed.broadcast(tensor, src=0)
        found |= {f"{place}.{name}": tensor for name, tensor in begun.items()}
    return found


def _look_at_rows(
    start: Start, name: str, model: FusedModel, precision: str, evaluator: Evaluator, most: int
) -> None:
    """Show rows to the adapters of the encoder of an input, as many at a time as a step takes: gradients need memory."""
    model.eval()
    for batch in evaluator.batches("train", most, micro_batch(evaluator.job, evaluator.world)):
        moved = batch.to(evaluator.device)
        loss = partial(_loss, model, precision, moved)
        if (counts := _counts(moved.inputs[name])).any():
            start.look(loss, counts)
        else:  # other workers may wait for this one, but what stands in for absent values is not to be seen
            with torch.no_grad():
                loss()


def _counts(part: EncoderBatch) -> torch.Tensor:
    """How often a batch has each distinct value of an input, int64 (values,); of a video, each frame, none of padding."""
    features = part.features or {}
    values = max((len(tensor) for tensor in features.values()), default=0)
    counts = torch.bincount(part.index[part.index >= 0], minlength=values)
    if "frame_mask" in features:
        counts = counts.unsqueeze(1) * features["frame_mask"]
    return counts.flatten()


def _loss(model: FusedModel, precision: str, batch: Batch) -> torch.Tensor:
    """Not through DeepSpeed's engine, which wants to differentiate by itself."""
    dtype = DTYPES[precision]
    with torch.autocast(batch.weights.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return model.total_loss(model.losses(model(batch), batch), batch)
