"""The model that a job describes: encoders → alignment → fusion → tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.data.encoded import MASK, TOKENS, WORD_STARTS
from rayfuse.errors import SpecError
from rayfuse.model.alignment import build_alignment
from rayfuse.model.alignment_losses import AlignedRows, build_alignment_loss
from rayfuse.model.encoders import build_encoder
from rayfuse.model.fusion import FusionModule, Joined, build_fusion
from rayfuse.model.mixup import Mixing
from rayfuse.model.tasks import TaskHead, build_task
from rayfuse.model.tokens import Fused, Tokens
from rayfuse.spec.job import Job


class FusedModel(nn.Module):
    """Answers all tasks of a job from whichever inputs its samples have.

    The job's inputs and tasks must be fitted (`rayfuse.data.dataset.fit`).
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoders, self.alignment = nn.ModuleDict(), nn.ModuleDict()
        for name, options in job.inputs.items():
            with _named(name):
                self.encoders[name] = build_encoder(options)
        for name, encoder in self.encoders.items():
            with _named(name):
                self.alignment[name] = build_alignment(job.align_of(name), encoder.width)  # type: ignore[arg-type]
        self.fusion = build_fusion(job.fusion, job.align.dim, list(job.inputs))
        self.tasks = nn.ModuleDict(
            {name: build_task(options, job.align.dim) for name, options in job.tasks.items()}
        )
        self.fusion.attach(heads_of(self))
        self.alignment_losses = {options.type: build_alignment_loss(options) for options in job.align.loss}
        self.aid_weights: dict[str, float] = {f"align/{o.type}": o.weight for o in job.align.loss}
        self.mixup = job.train.mixup
        self.distill = job.train.distill
        if self.mixup:
            _check_mixing(self.fusion, heads_of(self))
        self.task_weights = {name: options.weight for name, options in job.tasks.items()}
        learned = [name for name, weight in self.task_weights.items() if weight == "learned"]
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learned})

    def forward(
        self, batch: Batch, subsets: Sequence[Sequence[str]] | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Raw outputs of each task, float (batch, …).

        With `subsets`, a list of them: as if only those inputs had been given. Each is encoded once.
        In training also what `losses` needs to know of the aids, under names with a `/`.
        """
        encoded = self.encode(batch)
        if subsets is None:
            return self._answer(encoded, batch)
        return [self._answer(encoded, batch.subset(chosen)) for chosen in subsets]

    def encode(self, batch: Batch) -> dict[str, Tokens | None]:
        """The distinct values of each input of a batch, encoded; None for an input that no sample has."""
        return {name: self._encode(name, part) for name, part in batch.inputs.items()}

    def fuse(self, encoded: dict[str, Tokens | None], batch: Batch) -> Fused:
        """What the tasks answer from."""
        aligned = {
            name: self.alignment[name](encoded[name], part.index) for name, part in batch.inputs.items()
        }
        words = {name: found for name, part in batch.inputs.items() if (found := _words(part)) is not None}
        joined: Joined = self.fusion(aligned)
        return {**joined, "inputs": aligned, "words": words}

    def answer(self, fused: Fused) -> dict[str, torch.Tensor]:
        """Raw outputs of each task, float (batch, …)."""
        return {name: self.fusion.answer(name, head, fused) for name, head in heads_of(self).items()}

    def _answer(self, encoded: dict[str, Tokens | None], batch: Batch) -> dict[str, torch.Tensor]:
        fused = self.fuse(encoded, batch)
        return self._answer_with_aids(fused, batch) if self.training else self.answer(fused)

    def _answer_with_aids(self, fused: Fused, batch: Batch) -> dict[str, torch.Tensor]:
        heads = heads_of(self)
        mixing = Mixing.draw(self.mixup.alpha, batch.size, batch.weights.device) if self.mixup else None
        mixed = mixing.mix(fused) if mixing else fused
        outputs = {
            name: self.fusion.answer(name, head, mixed if head.mixes else fused)
            for name, head in heads.items()
        }
        rows = AlignedRows(fused["inputs"], outputs, heads, batch)
        aids = {f"align/{name}": loss(rows) for name, loss in self.alignment_losses.items()}
        return {**outputs, **aids, **(mixing.told() if mixing else {})}

    def losses(self, outputs: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Summed losses over the batch's samples; fillers count nothing.

        By task; `align/TYPE` and `distill/TASK` for what a training batch and the outputs of a model in training
        hold beside.
        """
        found = {
            name: self._task_loss(name, head, outputs, batch)
            if name in batch.targets
            else head.idle(outputs[name])
            for name, head in heads_of(self).items()
        }
        found |= {name: outputs[name].sum() for name in self.aid_weights if name in outputs}
        for name, answers in (batch.teacher or {}).items():
            divergence = partial(_softened, heads_of(self)[name], self.distill.temperature)  # type: ignore[union-attr]
            per_sample = self._per_sample(name, divergence, outputs, answers)
            found[f"distill/{name}"] = (per_sample * batch.weights).sum()
        return found

    def _task_loss(
        self, name: str, head: TaskHead, outputs: dict[str, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        if head.compares:
            whole = batch.whole
            return head.loss(outputs[name][whole], batch.targets[name][whole]).sum()
        return (self._per_sample(name, head.loss, outputs, batch.targets[name]) * batch.weights).sum()

    def _per_sample(
        self,
        name: str,
        loss: Callable[..., torch.Tensor],
        outputs: dict[str, torch.Tensor],
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each sample, float32 (batch,), mixed where the samples are."""
        mixing = Mixing.of(outputs)
        if mixing is None or not heads_of(self)[name].mixes:
            return loss(outputs[name], targets)
        return mixing.loss(loss, outputs[name], targets)

    def total_loss(self, losses: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The summed losses, weighted as the spec says."""
        return torch.stack([self._weighted(name, loss, batch) for name, loss in losses.items()]).sum()

    def _weighted(self, name: str, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        if name.startswith("distill/"):
            return loss * self.distill.weight  # type: ignore[union-attr]
        weight = self.aid_weights[name] if name in self.aid_weights else self.task_weights[name]
        if weight != "learned":
            return loss * weight
        log_variance = self.log_variances[name]
        return loss * torch.exp(-log_variance) + log_variance * batch.weights.sum()

    def _encode(self, name: str, part: EncoderBatch) -> Tokens | None:
        if part.features is None:
            return None
        if TOKENS in part.features:
            return part.features[TOKENS], part.features[MASK]
        return self.encoders[name](
            **{key: value for key, value in part.features.items() if key != WORD_STARTS}
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors within it say which input they are about."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"inputs.{name}: {error}") from None


def heads_of(model: nn.Module) -> dict[str, TaskHead]:
    """The task heads of a FusedModel."""
    return dict(model.tasks.items())  # type: ignore[operator, union-attr]


def _softened(
    head: TaskHead, temperature: float, outputs: torch.Tensor, answers: torch.Tensor
) -> torch.Tensor:
    """Divergence at a temperature, of the size that it has at 1 (Hinton et al., 2015): float32 (batch,)."""
    if outputs.shape != answers.shape:
        raise SpecError(
            f"train.distill: the teacher answers a task with {tuple(answers.shape[1:])} numbers, this model with "
            f"{tuple(outputs.shape[1:])}; they must be alike"
        )
    return head.divergence(outputs / temperature, answers / temperature) * temperature**2


def _check_mixing(fusion: FusionModule, heads: Mapping[str, TaskHead]) -> None:
    """Raise SpecError where mixed vectors would not be what is answered from."""
    if type(fusion).answer is not FusionModule.answer:
        raise SpecError(
            "train.mixup: this fusion does not answer from one fused vector; use another, or no mixup"
        )
    if not any(head.mixes for head in heads.values()):
        raise SpecError("train.mixup: none of the tasks answers from the fused vector alone; leave mixup out")


def _words(part: EncoderBatch) -> torch.Tensor | None:
    """Where the words of each sample begin, int64 (batch, words); None for an input that is not made of words."""
    if part.features is None or WORD_STARTS not in part.features:
        return None
    first = part.index[:, 0]
    starts = part.features[WORD_STARTS][first.clamp(min=0)]
    return starts.masked_fill((first < 0).unsqueeze(1), -1)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: trainable parameters and stored buffers (running statistics)."""
    parameters: dict[nn.Parameter, str] = {}
    buffers: dict[str, torch.Tensor] = {}
    for place, module in model.named_modules():  # once: every checkpoint goes through it while training waits
        before = f"{place}." if place else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                parameters.setdefault(parameter, before + name)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                buffers[before + name] = buffer
    return {name: parameter for parameter, name in parameters.items()} | buffers
