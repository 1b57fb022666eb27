"""Initialization from training rows, before the first step: adapters and the scale of encoder outputs."""

from typing import TYPE_CHECKING

from rayfuse.model.alignment.base import Standardizer
from rayfuse.model.fused import trainable_parameters
from rayfuse.training.adapter_init import initial_adapter_tensors
from rayfuse.training.ema import Ema
from rayfuse.training.evaluator import Evaluator
from rayfuse.training.optimizer_state import load_engine_weights
from rayfuse.training.state import gather_model

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_STANDARDIZATION_ROWS = 1024
"""Training rows that the mean and standard deviation of encoder outputs are computed from."""


def initialize_from_data(
    engine: "DeepSpeedEngine", evaluator: Evaluator, precision: str, ema: Ema | None = None
) -> None:
    """Initialize adapters (EVA, CorDA, LoRA-GA) and standardizers from training rows; every rank must call it.

    Raises DataError where the rows do not determine an adapter.
    """
    _initialize_adapters(engine, evaluator, precision, ema)
    _fit_standardizers(engine, evaluator)


def _initialize_adapters(
    engine: "DeepSpeedEngine", evaluator: Evaluator, precision: str, ema: Ema | None
) -> None:
    tensors = initial_adapter_tensors(engine.module, precision, evaluator)
    if not tensors:
        return
    load_engine_weights(engine, {**dict(gather_model(engine)), **tensors})
    if ema:
        ema.restore(trainable_parameters(engine.module))


def _fit_standardizers(engine: "DeepSpeedEngine", evaluator: Evaluator) -> None:
    standardizers = [module for module in engine.module.modules() if isinstance(module, Standardizer)]
    if not standardizers:
        return
    for standardizer in standardizers:
        standardizer.start_accumulating()
    evaluator.collect_raw("train", tasks=(), max_rows=_STANDARDIZATION_ROWS)  # for the forward passes alone
    for standardizer in standardizers:
        if standardizer.accumulated is not None:
            evaluator.context.all_reduce_(standardizer.accumulated)
        standardizer.finalize()
