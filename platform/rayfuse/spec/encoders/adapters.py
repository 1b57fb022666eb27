"""Adapters: small trained additions to a frozen pretrained encoder, with PEFT's names."""

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import JobSection, Problems, Url

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

_INITS = ("default", "gaussian", "orthogonal", "olora", "mica", "pissa", "eva", "corda", "lora_ga", "loftq")
_REQUIRES_UNSHARDED_WEIGHTS = ("corda", "lora_ga", "loftq")


def _validate_init(value: str) -> str:
    if value in _INITS or re.fullmatch(r"pissa_niter_\d{1,3}", value):
        return value
    known = f"one of: {', '.join(_INITS)}, pissa_niter_N"
    raise PydanticCustomError("init", "not an initialization; {known}", {"known": known})


MODIFIES_BASE_WEIGHTS = ("pissa", "olora", "corda", "lora_ga")
"""Prefixes of initializations that move a part of the frozen weights into the adapter."""


class BaseAdapterConfig(JobSection):
    """Options of every adapter."""

    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter: names, or `all-linear`."""
    last_n_layers: int | None = Field(None, ge=1)
    """Number of last layers that get adapters, by default all. Fewer cost less, as gradients stop at the first of them."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that are trained in full in addition to the adapters, by the end of their names, such as `LayerNorm`."""


class LoraAdapterConfig(BaseAdapterConfig):
    """Low-rank adapters (LoRA; Hu et al., 2021)."""

    r: int = Field(8, ge=1)
    """Rank of each adapter."""
    lora_alpha: float = Field(16, gt=0)
    """Scale: the output of an adapter is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate on the inputs of each adapter."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Ranks of single modules, by the end of their names or a regular expression for it."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Values of lora_alpha of single modules, by the end of their names or a regular expression for it."""
    use_dora: bool = False
    """Learn the magnitude of each weight vector apart from its direction (DoRA; Liu et al., 2024)."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r, which stabilizes high ranks (rsLoRA; Kalajdzievski, 2023)."""
    init_lora_weights: Annotated[str, AfterValidator(_validate_init)] = "default"
    """Initialization. `default`: no change of the output; `gaussian`: the same, from a normal distribution;
    `orthogonal`; `pissa`: the largest singular vectors of the weights (Meng et al., 2024); `pissa_niter_N`: the same by
    N iterations of a fast approximation; `olora`: a QR decomposition (Büyükakyüz, 2024); `mica`: the smallest singular
    vectors, and only A is trained; `loftq`: frozen weights are quantized to 4 bits, and adapters approximate the error
    (Li et al., 2023). With training rows: `eva`: directions of the largest variance of each map's inputs (Paischer et
    al., 2024); `corda`: the part of the weights that matters most to those inputs (Yang et al., 2024); `lora_ga`: the
    gradient of the loss (Wang et al., 2024). With pissa, olora, corda and lora_ga, what adapters start with is
    subtracted from the frozen weights."""
    init_from: Url | None = None
    """Folder of a LoRA adapter of PEFT that training starts with, instead of `init_lora_weights`; `r`, `lora_alpha`,
    `use_dora` and `use_rslora` must be those of the folder."""
    init_samples: int = Field(256, ge=1)
    """Training rows that eva, corda and lora_ga use, evenly spaced."""

    def validate_in_job(self, job: "Job") -> Problems:
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if self.init_lora_weights == "orthogonal" and odd:
            yield (
                "r",
                f"{odd[0]} is odd, and init_lora_weights: orthogonal needs even ranks; use {odd[0] + 1}",
            )
        if self.init_from and self.init_lora_weights != "default":
            yield (
                "init_from",
                f"adapters start with this folder or with init_lora_weights: {self.init_lora_weights}; leave one out",
            )
        if self.init_lora_weights == "mica" and self.use_dora:
            yield (
                "use_dora",
                "true cannot be combined with init_lora_weights: mica, which freezes B; leave one out",
            )

    def validate_zero_stage(self, stage: int) -> Problems:
        """Yield an error for each option that does not work under a ZeRO stage."""
        if self.init_lora_weights in _REQUIRES_UNSHARDED_WEIGHTS and stage == 3:
            yield (
                "init_lora_weights",
                f"{self.init_lora_weights} changes frozen weights, which ZeRO stage 3 shards; use "
                "train.deepspeed.stage 2 or less, or eva",
            )
        if self.init_from and stage == 3:
            yield (
                "init_from",
                "adapters are loaded whole, and ZeRO stage 3 shards them; use train.deepspeed.stage 2 or less",
            )


class IA3AdapterConfig(BaseAdapterConfig):
    """Learned factors on the outputs of linear maps (IA3; Liu et al., 2022)."""

    feedforward_modules: list[str] = Field(default_factory=list)
    """Targets whose inputs are scaled instead of their outputs, by the end of their names: in the paper, the second map
    of each feed-forward block."""


class OFTAdapterConfig(BaseAdapterConfig):
    """Learned block-diagonal rotations of weights (OFT; Qiu et al., 2023)."""

    oft_block_size: int = Field(32, ge=2)
    """Size of the rotated blocks; it must divide the input size of every target."""
    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a block is not rotated in a training step."""
