"""Initialize LoRA adapters from training rows (EVA, CorDA, LoRA-GA) or from quantization errors (LoftQ).

Row statistics are sums over all workers, so results do not depend on batch size, order or number of workers, and
each adapter keeps its configured rank. PEFT 0.21 provides the decomposition of CorDA; for the rest its own
implementations differ, as each class describes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rayfuse.errors import DataError

ADAPTER_NAME = "default"
"""PEFT's name of the single adapter of each layer."""

LoraLayer = Any
"""A `peft.tuners.lora.LoraLayer`, whose type annotations omit the module that it is mixed into."""

LoraWeights = tuple[torch.Tensor, torch.Tensor]
"""A, float32 (rank, in), and B, float32 (out, rank)."""

_STABLE_SCALE_GAMMA = 16.0
"""Gamma of LoRA-GA's stable scale (Wang et al., 2024)."""


class LoraInitializer(ABC):
    """Data-dependent initialization of all LoRA adapters of one encoder.

    `statistics` maps layer names to sums over the rows of this worker; all-reduce them before `initial_tensors`.
    """

    dtype = torch.float32

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder, self.layers = encoder, lora_layers(encoder)
        self.statistics = {
            name: torch.zeros(
                self.statistics_shape(layer), dtype=self.dtype, device=layer.get_base_layer().weight.device
            )
            for name, layer in self.layers.items()
        }

    @abstractmethod
    def statistics_shape(self, layer: LoraLayer) -> tuple[int, ...]:
        """Return the shape of a layer's statistics."""

    @abstractmethod
    def accumulate(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        """Add the statistics of one batch; `loss` runs the model on it and returns the scalar loss.

        `counts`, int64 (values,): how often the batch contains each distinct value that it encodes, or each frame.
        """

    @abstractmethod
    def init_weights(self, layer: LoraLayer, statistics: torch.Tensor) -> LoraWeights:
        """Compute the initial weights of a layer's adapter. Raises DataError if the statistics do not suffice."""

    def initial_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the initial tensors of all adapters with their names in the encoder."""
        for name, layer in self.layers.items():
            a, b = self.init_weights(layer, self.statistics[name])
            yield f"{name}.lora_A.{ADAPTER_NAME}.weight", a.contiguous()
            yield f"{name}.lora_B.{ADAPTER_NAME}.weight", b.contiguous()
            if hasattr(layer, "initial_a"):
                yield f"{name}.initial_a", a.contiguous()
                yield f"{name}.initial_b", b.contiguous()


class _ActivationInitializer(LoraInitializer):
    """Initialization from the count, sum and outer products of each linear layer's inputs, float64 (in + 1, in + 1).

    Padding is excluded. float64 because means can be 10³ times as large as the differences between inputs, and their
    squares 10⁶ times.
    """

    dtype = torch.float64

    def statistics_shape(self, layer: LoraLayer) -> tuple[int, ...]:
        return layer.in_features + 1, layer.in_features + 1

    @torch.no_grad()
    def accumulate(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        mask: list[torch.Tensor | None] = [None]

        def read_mask(module: nn.Module, args: Any, features: dict[str, torch.Tensor]) -> None:
            mask[0] = features.get("attention_mask")

        def add(name: str, inputs: torch.Tensor) -> None:
            vectors, times = inputs.double(), _sample_counts(counts, inputs)
            if mask[0] is not None and mask[0].shape == times.shape:
                vectors, times = vectors[mask[0].bool()], times[mask[0].bool()]
            vectors = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1)
            vectors = (vectors * times.sqrt().unsqueeze(-1)).flatten(0, -2)
            self.statistics[name].addmm_(vectors.T, vectors)

        with ExitStack() as hooks:
            hooks.enter_context(_forward_pre_hook(self.encoder, read_mask, with_kwargs=True))
            for name, layer in self.layers.items():
                base = layer.get_base_layer()
                hooks.enter_context(
                    _forward_pre_hook(base, lambda module, args, name=name: add(name, args[0]))
                )
            loss()

    def init_weights(self, layer: LoraLayer, statistics: torch.Tensor) -> LoraWeights:
        count, total, products = statistics[-1, -1], statistics[-1, :-1], statistics[:-1, :-1]
        rank = layer.r[ADAPTER_NAME]
        if not statistics.isfinite().all():
            raise DataError(
                "lora.init_lora_weights: the sampled training rows give NaN or infinite inputs to a linear layer that has an "
                "adapter; set train.precision: fp32, or use `default` or `pissa`"
            )
        if count < rank:
            raise DataError(
                f"lora.init_lora_weights: the sampled training rows give {int(count)} input vectors to a linear layer whose "
                f"adapter has rank {rank}; raise lora.init_samples, or use `default` or `pissa`"
            )
        return self.init_from_moments(layer, total / count, products / count)

    @abstractmethod
    def init_from_moments(self, layer: LoraLayer, mean: torch.Tensor, products: torch.Tensor) -> LoraWeights:
        """Compute initial weights from the mean input, float64 (in,), and mean outer product, float64 (in, in)."""


class EvaInitializer(_ActivationInitializer):
    """EVA (Paischer et al., 2024): A holds the principal components of a layer's inputs, B is zero.

    PEFT's `initialize_lora_eva_weights` updates a truncated incremental SVD per batch, so its result depends on the
    order and size of batches; it redistributes ranks even with `rho=1` if `rank_pattern` is set; and it cycles over
    the batches forever if each holds fewer vectors than the rank. Its sums cannot be combined across workers with
    different numbers of batches.
    """

    def init_from_moments(self, layer: LoraLayer, mean: torch.Tensor, products: torch.Tensor) -> LoraWeights:
        _, components = torch.linalg.eigh(products - torch.outer(mean, mean))
        a = components.flip(1)[:, : layer.r[ADAPTER_NAME]].T.float()
        return a, a.new_zeros(layer.out_features, len(a))


class CordaInitializer(_ActivationInitializer):
    """CorDA (Yang et al., 2024): adapters take over the weight components that matter most to the inputs.

    Instruction-previewed mode: with C the mean outer product of inputs and W C = U S Vᵀ, adapters take U S Vᵀ C⁻¹ of
    the largest singular values. PEFT damps and inverts C and decomposes W C. Its `preprocess_corda` does not suit
    batches: it reads one sample per call, includes padding, rescales each call, and does not sum over workers.
    """

    def init_from_moments(self, layer: LoraLayer, mean: torch.Tensor, products: torch.Tensor) -> LoraWeights:
        from peft import LoraConfig
        from peft.tuners.lora.corda import collect_eigens_for_layer

        base = layer.get_base_layer()
        base.covariance_matrix = products
        try:
            eigens = collect_eigens_for_layer(base, LoraConfig())
        finally:
            del base.covariance_matrix
        rank, device = layer.r[ADAPTER_NAME], products.device
        root = (eigens.S_WC[:rank] / layer.scaling[ADAPTER_NAME]).sqrt()
        return root[:, None] * eigens.V_WC[:, :rank].T.to(device), eigens.U_WC[:, :rank].to(device) * root


class LoraGAInitializer(LoraInitializer):
    """LoRA-GA (Wang et al., 2024): the first updates approximate those of full fine-tuning.

    With the gradient G = U S Vᵀ, A holds the first `rank` right singular vectors and B the next `rank` left ones, both
    at the paper's stable scale. PEFT's `lora_ga_init` multiplies B by S, so that the adapter depends on the scale of
    the loss, and decomposes by a randomized SVD; its `preprocess_loraga` calls `backward`, which would fill the
    gradients of the whole model and run DeepSpeed's hooks, and averages per worker.
    """

    def statistics_shape(self, layer: LoraLayer) -> tuple[int, ...]:
        return tuple(base_weight(layer).shape)

    @torch.enable_grad()
    def accumulate(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        weights = [layer.get_base_layer().weight.requires_grad_(True) for layer in self.layers.values()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        for (name, layer), weight, gradient in zip(self.layers.items(), weights, gradients, strict=True):
            weight.requires_grad_(False)
            if gradient is not None:
                self.statistics[name] += gradient.T if layer.fan_in_fan_out else gradient

    def init_weights(self, layer: LoraLayer, statistics: torch.Tensor) -> LoraWeights:
        if not statistics.any():
            raise DataError(
                "lora.init_lora_weights: lora_ga: the loss of the sampled training rows does not depend on a linear layer "
                "that has an adapter; raise lora.init_samples, or use `default` or `pissa`"
            )
        rank = layer.r[ADAPTER_NAME]
        left, _, right = torch.linalg.svd(statistics, full_matrices=False)
        scale = layer.out_features**0.25 / _STABLE_SCALE_GAMMA**0.5
        return scale * right[:rank], scale * left[:, rank : 2 * rank]


INITIALIZERS: dict[str, type[LoraInitializer]] = {
    "eva": EvaInitializer,
    "corda": CordaInitializer,
    "lora_ga": LoraGAInitializer,
}
"""Initializers that read training rows, by value of `lora.init_lora_weights`."""


def _sample_counts(counts: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Weight of each vector of a linear layer's inputs, (…, in): float64 (…).

    Windowed models split an image into consecutive entries of the first dimension; other layouts get a weight of 1.
    """
    repeats, rest = divmod(len(inputs), len(counts))
    times = torch.ones_like(inputs[..., 0], dtype=torch.float64)
    if rest == 0:
        times *= counts.repeat_interleave(repeats).view(-1, *[1] * (inputs.ndim - 2))
    return times


@contextmanager
def _forward_pre_hook(module: nn.Module, hook: Callable[..., None], **options: bool) -> Iterator[None]:
    """Call `hook` before each call of a module within the context."""
    handle = module.register_forward_pre_hook(hook, **options)
    try:
        yield
    finally:
        handle.remove()


def lora_layers(encoder: nn.Module) -> dict[str, LoraLayer]:
    """Return the layers of an encoder that have a LoRA adapter, by name."""
    from peft.tuners import lora

    return {name: module for name, module in encoder.named_modules() if isinstance(module, lora.LoraLayer)}


def base_weight(layer: LoraLayer) -> torch.Tensor:
    """Return the frozen weight of an adapted layer, float32 (out, in)."""
    weight = layer.get_base_layer().weight.detach().float()
    return weight.T if layer.fan_in_fan_out else weight


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
"""Levels of 4-bit NormalFloat (Dettmers et al., 2023, appendix E)."""
_NF4_BLOCK = 64


def fake_quantize_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Round a weight to 4-bit NormalFloat in blocks of 64 with absmax scales (Dettmers et al., 2023).

    Returns float32 values of the same shape.
    """
    flat = weight.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(_NF4, device=weight.device)
    borders = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(blocks / absmax.clamp(min=torch.finfo(flat.dtype).tiny), borders)]
    return (nearest * absmax).flatten()[: len(flat)].view_as(weight)


@torch.no_grad()
def init_loftq(layers: Iterable[LoraLayer]) -> None:
    """Quantize the frozen weights to NF4 and set adapters to the best low-rank correction (LoftQ, Li et al., 2023).

    One iteration of the paper's method, without training rows. PEFT's `loftq_init` needs bitsandbytes and a CUDA or
    XPU device, and its corrections ignore the adapter's scaling.
    """
    for layer in layers:
        weight = layer.get_base_layer().weight
        quantized = fake_quantize_nf4(weight)
        error = (weight - quantized).T if layer.fan_in_fan_out else weight - quantized
        left, singular_values, right = torch.linalg.svd(error, full_matrices=False)
        weight.copy_(quantized)
        rank = layer.r[ADAPTER_NAME]
        root = (singular_values[:rank] / layer.scaling[ADAPTER_NAME]).sqrt()
        layer.lora_A[ADAPTER_NAME].weight.copy_(root[:, None] * right[:rank])
        layer.lora_B[ADAPTER_NAME].weight.copy_(left[:, :rank] * root)
