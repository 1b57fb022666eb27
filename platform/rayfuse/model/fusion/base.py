"""What every fusion offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from rayfuse.model.tasks.base import TaskHead
from rayfuse.model.tokens import Fused, Tokens


class Joined(TypedDict):
    """What a fusion makes of the inputs; the fields mean what they mean in `rayfuse.model.tokens.Fused`."""

    vector: torch.Tensor
    attention: NotRequired[torch.Tensor]
    opinions: NotRequired[torch.Tensor]
    trust: NotRequired[torch.Tensor]


class FusionModule(nn.Module, ABC):
    """Joins aligned inputs. What it makes may depend on an input only where the input's mask is True."""

    def __init__(self, options: Any, dim: int, inputs: Sequence[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: dict[str, Tokens]) -> Joined:
        """{input: (float (batch, tokens, dim), bool (batch, tokens))} → at least a vector, float (batch, dim).

        An absent input has a mask of False throughout and a learned placeholder as its first token. All inputs
        of the job are there, in its order; a batch may hold no sample that has some of them.
        """

    def attach(self, heads: Mapping[str, TaskHead]) -> None:
        """Called once with the job's task heads, by name: for fusions that combine answers."""

    def answer(self, task: str, head: TaskHead, fused: Fused) -> torch.Tensor:
        """A task's raw outputs, float (batch, …). Fusions at decision level ask the head for each opinion instead."""
        return head(fused)
