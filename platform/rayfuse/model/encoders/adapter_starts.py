"""LoRA that begins by more than the weights: by what training rows tell of them, or by what rounding them loses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rayfuse.errors import DataError

ADAPTER = "default"
"""PEFT's name of the one adapter that a layer has."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A, float32 (rank, in), and B, float32 (out, rank)."""

_DAMPING = 0.01
"""Of the mean variance, added to each: few rows leave a covariance without an inverse (Yang et al., 2024)."""
_STABILITY = 16.0
"""Gamma of LoRA-GA's stable scale (Wang et al., 2024)."""


class Start(ABC):
    """How the adapters of one encoder begin, after they have seen rows.

    `observed` has what each saw, summed up, by the layer's name, so that workers can add theirs.
    """

    dtype = torch.float32

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder, self.layers = encoder, lora_layers(encoder)
        self.observed = {
            name: torch.zeros(self.size(layer), dtype=self.dtype, device=layer.get_base_layer().weight.device)
            for name, layer in self.layers.items()
        }

    @abstractmethod
    def size(self, layer: Any) -> tuple[int, ...]:
        """The size of what is observed of a layer."""

    @abstractmethod
    def look(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        """Observe one batch, by calling what runs the model on it and returns the loss.

        `counts`, int64 (values,): how often the batch has each of the distinct values that it encodes, or of their
        frames.
        """

    @abstractmethod
    def begin(self, layer: Any, observed: torch.Tensor) -> Pair:
        """What a layer's adapter begins with."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that adapters begin with, by their names in the encoder."""
        for name, layer in self.layers.items():
            a, b = self.begin(layer, self.observed[name])
            yield f"{name}.lora_A.{ADAPTER}.weight", a.contiguous()
            yield f"{name}.lora_B.{ADAPTER}.weight", b.contiguous()
            if hasattr(layer, "first_a"):
                yield f"{name}.first_a", a.contiguous()
                yield f"{name}.first_b", b.contiguous()


class _ByInputs(Start):
    """Looks at what goes into each linear map, but for padding: count, sum and products, float64 (in + 1, in + 1).

    Means can be a thousand times as large as what differs between inputs, and their squares a million times.
    """

    dtype = torch.float64

    def size(self, layer: Any) -> tuple[int, ...]:
        return layer.in_features + 1, layer.in_features + 1

    @torch.no_grad()
    def look(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        mask: list[torch.Tensor | None] = [None]

        def begin(module: nn.Module, args: Any, features: dict[str, torch.Tensor]) -> None:
            mask[0] = features.get("attention_mask")

        def take_in(name: str, given: torch.Tensor) -> None:
            seen, times = given.double(), _times(counts, given)
            if mask[0] is not None and mask[0].shape == times.shape:
                seen, times = seen[mask[0].bool()], times[mask[0].bool()]
            seen = torch.cat([seen, torch.ones_like(seen[..., :1])], dim=-1) * times.sqrt().unsqueeze(-1)
            seen = seen.flatten(0, -2)
            self.observed[name].addmm_(seen.T, seen)

        with ExitStack() as hooks:
            hooks.enter_context(_hook(self.encoder, begin, with_kwargs=True))
            for name, layer in self.layers.items():
                hooks.enter_context(
                    _hook(layer.get_base_layer(), lambda module, args, name=name: take_in(name, args[0]))
                )
            loss()

    def begin(self, layer: Any, observed: torch.Tensor) -> Pair:
        count, total, products = observed[-1, -1], observed[-1, :-1], observed[:-1, :-1]
        rank = layer.r[ADAPTER]
        if count < rank:
            raise DataError(
                f"lora.init: the training rows that were looked at sent {int(count)} vectors through a linear map whose "
                f"adapter has rank {rank}; raise lora.init_rows, or choose `default` or `pissa`"
            )
        return self.begin_by(layer, total / count, products / count)

    @abstractmethod
    def begin_by(self, layer: Any, mean: torch.Tensor, products: torch.Tensor) -> Pair:
        """What an adapter begins with, by the mean of a layer's inputs, (in,), and of their products, (in, in)."""


class Eva(_ByInputs):
    """A is along the directions in which inputs vary most, B is zero (EVA, Paischer et al., 2024).

    Every layer keeps its rank: the paper's other part, to share ranks out anew, would make the model's layout depend
    on rows.
    """

    def begin_by(self, layer: Any, mean: torch.Tensor, products: torch.Tensor) -> Pair:
        _, directions = torch.linalg.eigh(products - torch.outer(mean, mean))
        a = directions.flip(1)[:, : layer.r[ADAPTER]].T.float()
        return a, a.new_zeros(layer.out_features, len(a))


class Corda(_ByInputs):
    """The part of the weights that matters most to the inputs (CorDA, Yang et al., 2024, instruction-previewed mode).

    With C the mean of their products and W C = U S Vᵀ, adapters take U S Vᵀ C⁻¹ of the largest singular values over.
    """

    def begin_by(self, layer: Any, mean: torch.Tensor, products: torch.Tensor) -> Pair:
        damping = _DAMPING * products.diagonal().mean()
        products = products + damping * torch.eye(len(products), device=products.device)
        left, strengths, right = torch.linalg.svd(weight_of(layer).double() @ products, full_matrices=False)
        rank = layer.r[ADAPTER]
        root = (strengths[:rank] / layer.scaling[ADAPTER]).sqrt()
        unweighted = torch.linalg.solve(products, right[:rank].T).T
        return (root[:, None] * unweighted).float(), (left[:, :rank] * root).float()


class LoraGA(Start):
    """Along the gradient of the loss, so that the first steps go where full training would (LoRA-GA, Wang et al., 2024).

    With G = U S Vᵀ, A is along the first singular vectors on the right, and B along the next ones on the left.
    """

    def size(self, layer: Any) -> tuple[int, ...]:
        return tuple(weight_of(layer).shape)

    @torch.enable_grad()
    def look(self, loss: Callable[[], torch.Tensor], counts: torch.Tensor) -> None:
        weights = [layer.get_base_layer().weight.requires_grad_(True) for layer in self.layers.values()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        for (name, layer), weight, found in zip(self.layers.items(), weights, gradients, strict=True):
            weight.requires_grad_(False)
            if found is not None:
                self.observed[name] += found.T if layer.fan_in_fan_out else found

    def begin(self, layer: Any, observed: torch.Tensor) -> Pair:
        if not observed.any():
            raise DataError(
                "lora.init: lora_ga: the loss of the training rows that were looked at does not depend on a linear map "
                "that has an adapter; raise lora.init_rows, or choose `default` or `pissa`"
            )
        rank = layer.r[ADAPTER]
        left, _, right = torch.linalg.svd(observed, full_matrices=False)
        scale = layer.out_features**0.25 / _STABILITY**0.5
        return scale * right[:rank], scale * left[:, rank : 2 * rank]


STARTS: dict[str, type[Start]] = {"eva": Eva, "corda": Corda, "lora_ga": LoraGA}
"""Initialisations that look at training rows, by what `lora.init` calls them."""


def _times(counts: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """How often each vector of a map's inputs, (…, in), counts: float64 (…).

    The windows of a picture come one after the other.
    """
    each, rest = divmod(len(given), len(counts))
    times = torch.ones_like(given[..., 0], dtype=torch.float64)
    if rest == 0:
        times *= counts.repeat_interleave(each).view(-1, *[1] * (given.ndim - 2))
    return times


@contextmanager
def _hook(module: nn.Module, hook: Callable[..., None], **options: bool) -> Iterator[None]:
    """Call `hook` before each call of a module."""
    handle = module.register_forward_pre_hook(hook, **options)
    try:
        yield
    finally:
        handle.remove()


def lora_layers(encoder: nn.Module) -> dict[str, Any]:
    """The layers with LoRA of an encoder, by their names."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in encoder.named_modules() if isinstance(module, LoraLayer)}


def weight_of(layer: Any) -> torch.Tensor:
    """The frozen weight below an adapter, float32 (out, in)."""
    weight = layer.get_base_layer().weight.detach().float()
    return weight.T if layer.fan_in_fan_out else weight


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
"""The numbers of 4-bit NormalFloat (Dettmers et al., 2023, appendix E)."""
_NF4_BLOCK = 64


def round_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """A weight of numbers that 4 bits tell apart: in blocks of 64, each scaled by its largest (Dettmers et al., 2023)."""
    flat = weight.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    numbers = torch.tensor(_NF4, device=weight.device)
    borders = (numbers[1:] + numbers[:-1]) / 2
    nearest = numbers[torch.bucketize(blocks / largest.clamp(min=torch.finfo(flat.dtype).tiny), borders)]
    return (nearest * largest).flatten()[: len(flat)].view_as(weight)


@torch.no_grad()
def begin_rounded(layers: Iterable[Any]) -> None:
    """Round the frozen weights to 4 bits, and let adapters begin as the best repair of their rank (LoftQ, Li et al., 2023).

    That is the paper's method with one iteration. The rounded weights depend on the frozen ones alone.
    """
    for layer in layers:
        weight = layer.get_base_layer().weight
        rounded = round_to_nf4(weight)
        lost = (weight - rounded).T if layer.fan_in_fan_out else weight - rounded
        left, strengths, right = torch.linalg.svd(lost, full_matrices=False)
        weight.copy_(rounded)
        rank = layer.r[ADAPTER]
        root = (strengths[:rank] / layer.scaling[ADAPTER]).sqrt()
        layer.lora_A[ADAPTER].weight.copy_(root[:, None] * right[:rank])
        layer.lora_B[ADAPTER].weight.copy_(left[:, :rank] * root)
