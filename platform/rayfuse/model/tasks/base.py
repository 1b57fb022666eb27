"""Interface of a task head: loss, predictions and metrics, and what serving, planning and explanations need."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from rayfuse.modalities.base import Features, Schema
from rayfuse.model.tokens import FusedState
from rayfuse.spec.inputs import Input
from rayfuse.spec.tasks import Target

if TYPE_CHECKING:
    from rayfuse.model.language_model import LanguageModel
    from rayfuse.model.tasks.replies import Replies, Reply
    from rayfuse.model.tasks.text_decoding import TextDecoding


class TaskHead(nn.Module, ABC):
    """Predict one task of a job from the fused inputs.

    Subclasses implement `forward`, `loss`, `format_predictions` and `metrics`; all else has a default. Evaluation
    concatenates the outputs of many batches; axes beyond the first may differ in size, and are padded with NaN.
    """

    num_outputs: int | None = None
    """Size of the last axis of raw outputs that a fusion may correct; None if it cannot correct them."""
    output_scale: tuple[float, float] = (0.0, 1.0)
    """Approximate mean and standard deviation of raw outputs."""
    attribution_score_name: ClassVar[str] = "output"
    """Name of the number that `attribution_score` returns, for reports."""
    supports_mixup: ClassVar[bool] = False
    """True if each output depends on the fused vector of its sample alone, so that mixup can mix vectors."""
    cross_sample_loss: ClassVar[bool] = False
    """True if a row's loss depends on other rows; such a loss is computed for complete rows, not for input subsets."""
    reads_targets: ClassVar[bool] = False
    """True if raw outputs are computed from the targets, which `forward` gets as its second argument, None if no sample
    has any. Predictions are then made by `generate`, and a fusion does not combine the head's outputs."""
    labels_words: ClassVar[bool] = False
    """True if the task labels single words, so that texts are given as lists of words."""

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fused: FusedState) -> torch.Tensor:
        """Compute raw outputs, float (batch, …)."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each sample, float32 (batch,). targets: float32 (batch, …), padded with NaN."""

    def attach_inputs(self, inputs: Mapping[str, Input]) -> None:
        """Receive the job's inputs, once after construction, for heads that read single inputs."""

    def generate(self, fused: FusedState) -> torch.Tensor:
        """Compute what `format_predictions` reads, float (batch, …): raw outputs, unless they need targets."""
        outputs: torch.Tensor = self(fused)
        return outputs

    @property
    def language_model(self) -> "LanguageModel | None":
        """The pretrained language model of the task, which `rayfuse export` writes; None for a task without one."""
        return None

    @property
    def soft_token_inputs(self) -> Sequence[str]:
        """Inputs whose tokens the task's language model reads, so that they count towards its context."""
        return ()

    @property
    def encoded_inputs(self) -> Sequence[str]:
        """Inputs whose tokens the head reads as the encoder returns them (`FusedState.encoded`)."""
        return ()

    def check_features(self, features: Mapping[str, Sequence[Features]]) -> None:
        """Raise InvalidInputError if the task cannot read the features of a sample's items, by input."""

    def check_context(self, span_lengths: Mapping[str, int]) -> None:
        """Raise DataError if the longest sequence exceeds the positions of the task's language model.

        span_lengths: largest number of tokens of each of `soft_token_inputs`.
        """

    @property
    def text_decoding(self) -> "TextDecoding | None":
        """Prompts and settings with which `rayfuse.decoding` writes the task's texts request by request.

        None for a task that writes no texts, or that decodes them in batches only (`generate`).
        """
        return None

    @property
    def decoded_rows(self) -> int:
        """Number of validation rows whose replies are decoded after each epoch; 0 for a task that writes no texts."""
        return 0

    def as_targets(self, generated: torch.Tensor) -> torch.Tensor:
        """Convert the outputs of `generate` to targets, so that they can be scored."""
        return generated

    def read_replies(self, generated: torch.Tensor, targets: torch.Tensor) -> list["Reply"]:
        """Return the text of each sample next to its reference, from the outputs of `generate`."""
        raise NotImplementedError("only heads that read targets generate texts")

    def reply_metrics(self, replies: "Replies") -> dict[str, float]:
        """Compute the metrics of decoded texts that the task's spec lists."""
        raise NotImplementedError("only heads that read targets generate texts")

    def loss_weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weight of each sample's loss in a mean, float32 (batch,), by which `loss` is multiplied already."""
        return torch.ones(len(targets), device=targets.device)

    def zero_loss(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return a loss of 0 for a batch of padding rows without targets, with a gradient for every parameter.

        A head whose loss gathers rows of all workers must gather here too; the other workers would wait otherwise.
        """
        return outputs.sum() * 0.0

    @abstractmethod
    def format_predictions(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """Convert raw outputs to one prediction per sample, of JSON values only."""

    def prediction_tensor(self, outputs: torch.Tensor) -> torch.Tensor | None:
        """Convert raw outputs to the numbers of the predictions, float (batch, …), as exported to ONNX.

        None, by default, if predictions are not numbers of one size.
        """
        return None

    @abstractmethod
    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute the metrics of the task's spec, without the loss."""

    def combine_logits(self, outputs: torch.Tensor, decision_weights: torch.Tensor) -> torch.Tensor:
        """Combine raw outputs of several decisions, float (batch, decisions, …), into one, (batch, …).

        decision_weights: float (batch, decisions); rows sum to 1, and a decision of weight 0 must not count.
        """
        weights = decision_weights.view(*decision_weights.shape, *[1] * (outputs.ndim - 2))
        return (outputs * weights).sum(dim=1)

    def hard_votes(self, outputs: torch.Tensor) -> torch.Tensor:
        """Convert raw outputs to those of a confident decision, of the same shape; unchanged by default."""
        return outputs

    def attribution_score(
        self, outputs: torch.Tensor, reference_outputs: torch.Tensor
    ) -> torch.Tensor | None:
        """Compute how much raw outputs (batch, …) support the prediction of `reference_outputs`, float (batch,).

        Contributions of inputs explain this number (`rayfuse.model.explain`). By default it is the output itself if
        there is one per sample; otherwise None, and the task is not explained.
        """
        return outputs.flatten() if outputs.numel() == len(outputs) else None

    def saliency_score(self, outputs: torch.Tensor, reference_outputs: torch.Tensor) -> torch.Tensor | None:
        """Compute the score whose gradient saliency follows, float (batch,); it should not saturate."""
        return self.attribution_score(outputs, reference_outputs)

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """Compute the divergence of each sample's outputs from others of the same shape, float32 (batch,).

        It is 0 where both are equal and quadratic near 0, as distillation and consistency losses expect. By default
        the mean squared difference.
        """
        return (outputs.float() - target_outputs.float()).square().flatten(1).mean(dim=1)

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Compute report details beyond single numbers, such as a confusion matrix, of JSON values only."""
        return {}

    @property
    def memory_bank_size(self) -> int:
        """Number of training rows whose outputs `fill_memory_bank` gets."""
        return 0

    def fill_memory_bank(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Store outputs of training rows after training. Returns the buffers that were set, by name."""
        return {}

    @property
    def calibration_rows(self) -> int:
        """Maximum number of validation rows whose outputs `calibrate` gets; 0 for a task that is not calibrated."""
        return 0

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit calibration parameters on validation rows after training. Returns the buffers that were set, by name."""
        return {}

    @classmethod
    def response_schema(cls, config: Any) -> Schema:
        """Return the JSON Schema of a prediction; any object by default.

        `config`: the fitted task, or the validated `Options` of a custom one.
        """
        return {"type": "object"}

    @classmethod
    def with_assumed_statistics(cls, config: Any) -> tuple[Any, list[str]]:
        """Return the task with assumed values for what training rows determine, and notes about the assumptions.

        Resource estimation uses them when it runs without reading the training rows.
        """
        return config, []

    @classmethod
    def dummy_target(cls, config: Any, inputs: Mapping[str, Input]) -> Target:
        """Return a target of a fitted task, for resource estimation. `inputs`: the job's inputs."""
        return 1.0

    @classmethod
    def summarize_prediction(cls, prediction: Mapping[str, Any]) -> str:
        """Return a prediction as short text, for plots: its label, value or score by default."""
        value = next((prediction[key] for key in ("label", "value", "score") if key in prediction), "")
        return f"{value:.4g}" if isinstance(value, float) else str(value)


def touch_fusion_params(outputs: torch.Tensor, fused: FusedState) -> torch.Tensor:
    """Return the outputs unchanged, with a zero gradient to the fusion, for heads that do not read its vector."""
    shape = (len(outputs), *([1] * (outputs.ndim - 1)))
    return outputs + fused["vector"].sum(dim=1).reshape(shape).to(outputs.dtype) * 0.0
