"""Small trained additions to a frozen pretrained encoder."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Part

_INITS = ("default", "gaussian", "orthogonal", "olora", "mica", "pissa", "eva", "corda", "lora_ga", "loftq")
_NEED_WHOLE_WEIGHTS = ("corda", "lora_ga", "loftq")


def _known_init(value: str) -> str:
    if value in _INITS or re.fullmatch(r"pissa_niter_\d{1,3}", value):
        return value
    known = f"one of: {', '.join(_INITS)}, pissa_niter_N"
    raise PydanticCustomError("init", "not an initialisation; {known}", {"known": known})


class Adapter(Part):
    """What all adapters share."""

    targets: str | list[str] = "all-linear"
    """Modules that get an adapter: names, or `all-linear`."""
    layers: int | None = Field(None, ge=1)
    """Adapters in this many of the last layers only, which costs less: gradients stop there. All where absent."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that are trained in full beside the adapters, by the end of their names, such as `LayerNorm`."""


class Lora(Adapter):
    """Low-rank adapters on a pretrained encoder (Hu et al., 2021)."""

    r: int = Field(8, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(16, gt=0)
    """Scale: an adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks of some modules, by the end of their names or a regular expression for it."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other alphas of some modules, likewise."""
    dora: bool = False
    """Learn the length of each weight vector apart from its direction (DoRA, Liu et al., 2024)."""
    rslora: bool = False
    """Scale by alpha / √r, which keeps high ranks learning (rsLoRA, Kalajdzievski, 2023)."""
    init: Annotated[str, AfterValidator(_known_init)] = "default"
    """How adapters begin: `default` (no change of the output), `gaussian` (the same, drawn otherwise), `orthogonal`,
    `pissa` (the weights' largest singular vectors; Meng et al., 2024), `pissa_niter_N` (the same, found by N rounds of
    a faster approximation), `olora` (from a QR decomposition; Büyükakyüz, 2024), `mica` (only A is trained, on the
    smallest singular vectors), or `loftq` (frozen weights are rounded to 4 bits, and adapters begin as the best repair
    of their rank; Li et al., 2023). Three look at training rows first: `eva` (A along what the inputs of each map vary
    in most; Paischer et al., 2024), `corda` (the part of the weights that matters most to those inputs; Yang et al.,
    2024) and `lora_ga` (along the gradient of the loss; Wang et al., 2024). What pissa, olora, corda and lora_ga take
    over is subtracted from the frozen weights."""
    init_rows: int = Field(256, ge=1)
    """Training rows that eva, corda and lora_ga look at, spread over all of them."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init == "orthogonal" and odd:
            yield "r", f"rank {odd[0]} is odd, and orthogonal initialisation needs even ones"
        if self.init == "mica" and self.dora:
            yield "dora", "does not go with init: mica, which freezes B; choose one of them"

    def stage_problems(self, stage: int) -> Iterable[tuple[str, str]]:
        """What does not work under a ZeRO stage."""
        if self.init in _NEED_WHOLE_WEIGHTS and stage == 3:
            yield (
                "init",
                f"{self.init} changes frozen weights, which ZeRO stage 3 leaves no worker whole; write "
                "train.deepspeed.stage 2 or less, or choose eva",
            )


class IA3(Adapter):
    """Learned factors on the outputs of a pretrained encoder's linear maps (Liu et al., 2022)."""

    feedforward: list[str] = Field(default_factory=list)
    """Targets whose inputs are scaled instead of their outputs, by the end of their names: the second map of each
    feed-forward block, in the paper."""


class OFT(Adapter):
    """Learned rotations of a pretrained encoder's weights, block by block (Qiu et al., 2023)."""

    block_size: int = Field(32, ge=2)
    """Inputs that are rotated together; it must divide the inputs of every target."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a block is not rotated in a step of training."""
