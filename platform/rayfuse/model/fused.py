"""The model of a job: encoders → alignment → fusion → task heads."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from rayfuse.data.cached_features import TOKENS, TOKENS_MASK, WORD_STARTS
from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.errors import SpecError
from rayfuse.modalities.text import PROMPT_TEXT
from rayfuse.model.alignment import build_alignment
from rayfuse.model.alignment_losses import AlignedRows, build_alignment_loss
from rayfuse.model.encoders import build_encoder
from rayfuse.model.fusion import FusionModule, FusionOutput, build_fusion
from rayfuse.model.mixup import Mixing
from rayfuse.model.outputs import LossOutput, ModelOutput
from rayfuse.model.tasks import TaskHead, build_task
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.spec.job import Job

_CACHED_FEATURES = {TOKENS, TOKENS_MASK, WORD_STARTS}
"""Features of an input whose encoder does not run."""


class FusedModel(nn.Module):
    """Predictions for all tasks of a job from whichever inputs each sample has.

    The job's inputs and tasks must be fitted (`rayfuse.data.dataset.fit`).
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoders, self.alignment = nn.ModuleDict(), nn.ModuleDict()
        self._build_encoders(job)
        for name, encoder in self.encoders.items():
            with _prefix_errors(name):
                self.alignment[name] = build_alignment(job.align_of(name), encoder.width)  # type: ignore[arg-type]
        self.fusion = build_fusion(job.fusion, job.align.dim, list(job.inputs))
        self.tasks = nn.ModuleDict(
            {name: build_task(options, job.align.dim) for name, options in job.tasks.items()}
        )
        for head in task_heads(self).values():
            head.attach_inputs(job.inputs)
        self.fusion.attach_heads(task_heads(self))
        heads = task_heads(self).values()
        self._encoded_inputs = [
            name for name in job.inputs if any(name in head.encoded_inputs for head in heads)
        ]
        self.alignment_losses = {options.type: build_alignment_loss(options) for options in job.align.loss}
        self.alignment_loss_weights: dict[str, float] = {
            options.type: options.weight for options in job.align.loss
        }
        self.mixup = job.train.mixup
        self.distillation = job.train.distillation
        if self.mixup:
            _check_mixup(self.fusion, task_heads(self))
        self.task_weights = {name: options.weight for name, options in job.tasks.items()}
        learned = [name for name, weight in self.task_weights.items() if weight == "learned"]
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learned})

    def forward(
        self, batch: Batch, subsets: Sequence[Sequence[str]] | None = None, generate: bool = False
    ) -> ModelOutput | list[ModelOutput]:
        """Return the raw outputs of each task; in training mode also alignment losses and how samples were mixed.

        With `subsets`, return one output for each of these subsets of the inputs, as if only those inputs were given.
        Each input is encoded once. With `generate`, outputs are those that predictions are made from, which differ for
        heads that read the targets (`TaskHead.reads_targets`).
        """
        encoded = self.encode(batch)
        if subsets is None:
            return self._fuse_and_apply_heads(encoded, batch, generate)
        return [
            self._fuse_and_apply_heads(encoded, batch.select_inputs(chosen), generate) for chosen in subsets
        ]

    def encode(self, batch: Batch) -> dict[str, Tokens | None]:
        """Encode the distinct values of each input of a batch; None for an input that no sample has."""
        return {name: self._encode(name, part) for name, part in batch.inputs.items()}

    def fuse(self, encoded: dict[str, Tokens | None], batch: Batch) -> FusedState:
        """Align and fuse encoded inputs to the state that the task heads read."""
        aligned = {
            name: self.alignment[name](encoded[name], part.index) for name, part in batch.inputs.items()
        }
        words = {
            name: found for name, part in batch.inputs.items() if (found := _word_starts(part)) is not None
        }
        texts = {
            name: _values_of_samples(part, part.features[PROMPT_TEXT])
            for name, part in batch.inputs.items()
            if part.features is not None and PROMPT_TEXT in part.features
        }
        own = {
            name: _tokens_of_samples(encoded[name], batch.inputs[name].index, self.encoders[name].width)  # type: ignore[arg-type]
            for name in self._encoded_inputs
        }
        items = {name: part.index >= 0 for name, part in batch.inputs.items()}
        joined: FusionOutput = self.fusion(aligned)
        return {
            **joined,
            "inputs": aligned,
            "items": items,
            "encoded": own,
            "word_starts": words,
            "texts": texts,
        }

    def apply_heads(
        self, fused: FusedState, targets: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the raw output of each task, float (batch, …); `targets` are for heads that read them."""
        return {
            name: self._apply_head(name, head, fused, targets or {})
            for name, head in task_heads(self).items()
        }

    def predictions(self, fused: FusedState, skip: Container[str] = ()) -> dict[str, torch.Tensor]:
        """Return what `TaskHead.format_predictions` reads, by task but those in `skip`: float (batch, …)."""
        return {
            name: head.generate(fused) if head.reads_targets else self.fusion.apply_head(name, head, fused)
            for name, head in task_heads(self).items()
            if name not in skip
        }

    def losses(self, output: ModelOutput, batch: Batch) -> LossOutput:
        """Compute the losses of a batch, summed over its samples; filler samples do not count."""
        tasks = {
            name: self._task_loss(name, head, output, batch)
            if name in batch.targets
            else head.zero_loss(output.tasks[name])
            for name, head in task_heads(self).items()
        }
        alignment = {name: loss.sum() for name, loss in output.alignment_losses.items()}
        distillation = {
            name: self._distillation_loss(name, output, targets, batch)
            for name, targets in (batch.teacher_outputs or {}).items()
        }
        return LossOutput(tasks, alignment, distillation)

    def total_loss(self, losses: LossOutput, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of all losses, float32 ().

        A task with the weight `learned` is weighted by its uncertainty (Kendall et al., 2018).
        """
        weighted = [self._weight_task_loss(name, loss, batch) for name, loss in losses.tasks.items()]
        weighted += [loss * self.alignment_loss_weights[name] for name, loss in losses.alignment.items()]
        if self.distillation:
            weighted += [loss * self.distillation.weight for loss in losses.distillation.values()]
        return torch.stack(weighted).sum()

    def _build_encoders(self, job: Job) -> None:
        """Build the encoders; inputs that share one have the same module, whose weights have the name of its owner."""
        sharing = {
            name: one.shares_encoder for name, one in job.inputs.items() if one.shares_encoder is not None
        }
        for name, options in job.inputs.items():
            if name not in sharing:
                with _prefix_errors(name):
                    self.encoders[name] = build_encoder(options)
        for name, owner in sharing.items():
            with _prefix_errors(name):
                self.encoders[owner].check_input(job.inputs[name])  # type: ignore[operator]
            self.encoders[name] = self.encoders[owner]

    def _fuse_and_apply_heads(
        self, encoded: dict[str, Tokens | None], batch: Batch, generate: bool
    ) -> ModelOutput:
        fused = self.fuse(encoded, batch)
        if generate:
            return ModelOutput(self.predictions(fused))
        if self.training:
            return self._training_output(fused, batch)
        return ModelOutput(self.apply_heads(fused, batch.targets))

    def _apply_head(
        self, name: str, head: TaskHead, fused: FusedState, targets: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        if head.reads_targets:
            outputs: torch.Tensor = head(fused, targets.get(name))
            return outputs
        return self.fusion.apply_head(name, head, fused)

    def _training_output(self, fused: FusedState, batch: Batch) -> ModelOutput:
        heads = task_heads(self)
        mixing = (
            Mixing.sample(self.mixup.alpha, batch.batch_size, batch.weights.device) if self.mixup else None
        )
        mixed = mixing.mix(fused) if mixing else fused
        outputs = {
            name: self._apply_head(name, head, mixed if head.supports_mixup else fused, batch.targets)
            for name, head in heads.items()
        }
        rows = AlignedRows(fused["inputs"], outputs, heads, batch)
        return ModelOutput(
            outputs, {name: loss(rows) for name, loss in self.alignment_losses.items()}, mixing
        )

    def _task_loss(self, name: str, head: TaskHead, output: ModelOutput, batch: Batch) -> torch.Tensor:
        if head.cross_sample_loss:
            full = batch.is_full
            return head.loss(output.tasks[name][full], batch.targets[name][full]).sum()
        return (self._per_sample_loss(name, head.loss, output, batch.targets[name]) * batch.weights).sum()

    def _distillation_loss(
        self, name: str, output: ModelOutput, targets: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        assert self.distillation is not None, "only train.distillation adds teacher outputs to batches"
        divergence = partial(_divergence, task_heads(self)[name], self.distillation.temperature)
        return (self._per_sample_loss(name, divergence, output, targets) * batch.weights).sum()

    def _per_sample_loss(
        self,
        name: str,
        loss: Callable[..., torch.Tensor],
        output: ModelOutput,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the loss of each sample, float32 (batch,); of mixed samples, the mixed loss."""
        if output.mixup is None or not task_heads(self)[name].supports_mixup:
            return loss(output.tasks[name], targets)
        return output.mixup.loss(loss, output.tasks[name], targets)

    def _weight_task_loss(self, name: str, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        weight = self.task_weights[name]
        if weight != "learned":
            return loss * weight
        log_variance = self.log_variances[name]
        return loss * torch.exp(-log_variance) + log_variance * batch.weights.sum()

    def _encode(self, name: str, part: EncoderBatch) -> Tokens | None:
        if part.features is None:
            return None
        if part.features.keys() <= _CACHED_FEATURES:
            return part.features[TOKENS], part.features[TOKENS_MASK]
        return self.encoders[name](
            **{key: value for key, value in part.features.items() if key != WORD_STARTS}
        )


@contextmanager
def _prefix_errors(name: str) -> Iterator[None]:
    """Prefix spec errors with the input they are about."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"inputs.{name}: {error}") from None


def task_heads(model: nn.Module) -> dict[str, TaskHead]:
    """Return the task heads of a FusedModel by task."""
    return dict(model.tasks.items())  # type: ignore[operator, union-attr]


def _divergence(
    head: TaskHead, temperature: float, outputs: torch.Tensor, teacher_outputs: torch.Tensor
) -> torch.Tensor:
    """Compute the divergence at a temperature, float32 (batch,), with gradients of the size they have at temperature 1.

    (Hinton et al., 2015, section 2.)
    """
    if outputs.shape != teacher_outputs.shape:
        raise SpecError(
            f"train.distillation: the teacher predicts {tuple(teacher_outputs.shape[1:])} values per sample for a task "
            f"and this model {tuple(outputs.shape[1:])}; both must predict the same number"
        )
    return head.divergence(outputs / temperature, teacher_outputs / temperature) * temperature**2


def _check_mixup(fusion: FusionModule, heads: Mapping[str, TaskHead]) -> None:
    """Raise SpecError if no task reads the fused vector that mixup changes."""
    if type(fusion).apply_head is not FusionModule.apply_head:
        raise SpecError(
            "train.mixup: this fusion does not predict from one fused vector; use another fusion or remove train.mixup"
        )
    if not any(head.supports_mixup for head in heads.values()):
        raise SpecError("train.mixup: no task predicts from the fused vector alone; remove train.mixup")


def _word_starts(part: EncoderBatch) -> torch.Tensor | None:
    """Return where the words of each sample begin, int64 (batch, words); None for an input without words."""
    if part.features is None or WORD_STARTS not in part.features:
        return None
    return _values_of_samples(part, part.features[WORD_STARTS])


def _tokens_of_samples(encoded: Tokens | None, index: torch.Tensor, width: int) -> Tokens:
    """Return the tokens of each sample's values, (batch, items × tokens, width), 0 where one is absent, and their mask."""
    if encoded is None:
        empty = torch.zeros(*index.shape, width, device=index.device)
        return empty, torch.zeros(index.shape, dtype=torch.bool, device=index.device)
    tokens, mask = encoded
    present, rows = (index >= 0).unsqueeze(2), index.clamp(min=0)
    own = torch.where(present.unsqueeze(3), tokens[rows], 0.0)
    return own.flatten(1, 2), (mask[rows] & present).flatten(1, 2)


def _values_of_samples(part: EncoderBatch, feature: torch.Tensor) -> torch.Tensor:
    """Return a feature (values, …) of each sample's first value, (batch, …), -1 where the input is absent."""
    first = part.index[:, 0]
    return feature[first.clamp(min=0)].masked_fill((first < 0).unsqueeze(1), -1)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of a model by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that training changes, by name: trainable parameters and persistent buffers such as running statistics."""
    parameters: dict[nn.Parameter, str] = {}
    buffers: dict[str, torch.Tensor] = {}
    for place, module in model.named_modules():  # one pass: training waits for it at every checkpoint
        before = f"{place}." if place else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                parameters.setdefault(parameter, before + name)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                buffers[before + name] = buffer
    return {name: parameter for parameter, name in parameters.items()} | buffers
