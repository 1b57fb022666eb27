"""Preference: a generation task trained on pairs of replies, of which one is better."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfuse.errors import InvalidInputError
from rayfuse.spec.base import Problems
from rayfuse.spec.cells import CellType
from rayfuse.spec.encoders.adapters import MODIFIES_BASE_WEIGHTS, LoraAdapterConfig
from rayfuse.spec.tasks.base import Mode, Target
from rayfuse.spec.tasks.generation import GenerationTaskConfig, TextMetric

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class PreferenceTaskConfig(GenerationTaskConfig):
    """A text, written by a language model that learns from pairs of a better and a worse reply.

    Direct preference optimization (DPO; Rafailov et al., 2023); the reference is the model without its adapters.
    """

    weighted_rows: ClassVar[bool] = False
    target_reader: ClassVar[str] = "rayfuse.data.targets:PairReader"

    type: Literal["preference"]  # type: ignore[assignment]
    rejected: str = Field(min_length=1)
    """Column of the worse reply; `column` is that of the better one."""
    beta: float = Field(0.1, gt=0)
    """Strength by which the model is kept near the reference: the scale of the log-ratios in the loss."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the mean cross entropy of the better reply's tokens, which is added to the loss (RPO; Pang et al., 2024)."""
    metrics: list[TextMetric] = Field(default_factory=list)
    """Metrics of decoded replies next to the better ones; see `generation`."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {**super().columns, self.rejected: "str"}

    def metric_modes(self) -> dict[str, Mode]:
        return {**super().metric_modes(), "reward_accuracy": "max", "reward_margin": "max"}

    def validate_in_job(self, job: "Job") -> Problems:
        yield from super().validate_in_job(job)
        if self.rejected == self.column:
            yield (
                "rejected",
                f"{self.rejected} is the column of the better reply as well; name another column",
            )
        if self.learned_replies == "all":
            yield "learned_replies", "pairs have one better reply, to the last message; leave it out"
        if self.adapter is None:
            yield (
                "train",
                f"{self.train} leaves no reference, which is the model without its adapters; use lora, ia3 or oft",
            )
        elif isinstance(self.adapter, LoraAdapterConfig):
            yield from self._validate_lora(self.adapter)

    def _validate_lora(self, adapter: LoraAdapterConfig) -> Problems:
        if adapter.init_lora_weights.startswith((*MODIFIES_BASE_WEIGHTS, "loftq")):
            yield (
                f"{self.train}.init_lora_weights",
                f"{adapter.init_lora_weights} changes the weights of the reference; use default",
            )
        if adapter.init_from:
            yield (
                f"{self.train}.init_from",
                "the reference would lack this adapter; run `rayfuse export MODEL --merged`, and start with that folder",
            )

    def rejected_reply(self, values: Mapping[str, Any]) -> str:
        """Return the worse reply of a row. Raises InvalidInputError if there is none, or if it equals the better one."""
        worse = self.model_copy(update={"column": self.rejected}).reply(values)
        if worse == self.reply(values):
            raise InvalidInputError(f"the reply equals {self.column}; remove the row")
        return worse

    def loss_weight(self, target: Target) -> float:
        """Return 1: pairs count equally."""
        return 1.0
