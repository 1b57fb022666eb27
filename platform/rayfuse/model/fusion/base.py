"""Base class of fusions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import FusedState, Tokens


class FusionOutput(TypedDict):
    """Output of a fusion; see `rayfuse.model.tokens.FusedState` for the fields."""

    vector: torch.Tensor
    attention: NotRequired[torch.Tensor]
    per_input_vectors: NotRequired[torch.Tensor]
    decision_weights: NotRequired[torch.Tensor]


class FusionModule(nn.Module, ABC):
    """Base class of fusions of aligned inputs; the output must not depend on masked tokens."""

    def __init__(self, options: Any, dim: int, inputs: Sequence[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        """Fuse {input: (float (batch, tokens, dim), bool (batch, tokens))} to at least a vector, float (batch, dim).

        `inputs` has all inputs of the job in its order. An absent input is masked throughout, with a learned
        placeholder as its first token; in a batch, an input may be absent from all samples.
        """

    def attach_heads(self, heads: Mapping[str, TaskHead]) -> None:
        """Receive the job's task heads by name, once after construction, for fusions that combine predictions."""

    def apply_head(self, task: str, head: TaskHead, fused: FusedState) -> torch.Tensor:
        """Return a task's raw outputs, float (batch, …); decision-level fusions apply the head per input."""
        return head(fused)
