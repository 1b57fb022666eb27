"""Parameter groups of the optimizer: one for each combination of learning rate, weight decay and training span."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.layer_depth import depths_from_top
from rayfuse.model.fused import trainable_parameters
from rayfuse.spec.encoders import LayeredEncoderConfig, iter_encoders
from rayfuse.spec.job import Job
from rayfuse.spec.optimizers import ParamGroupConfig
from rayfuse.training.optimizers import ParamGroup, muon_parameters
from rayfuse.training.training_spans import TrainingSpan

_MAX_SUGGESTIONS = 5


def build_param_groups(job: Job, model: nn.Module) -> list[ParamGroup]:
    """Group trainable parameters by learning rate, weight decay and span; norms, biases and other vectors do not decay.

    Raises SpecError if a pattern of `train.param_groups` matches no trainable parameter.
    """
    parameters = trainable_parameters(model)
    chosen = _match_param_groups(job, parameters)
    rates = {**_encoder_learning_rates(job, model), **_task_learning_rates(job, parameters)}
    for_muon = muon_parameters(model) if job.train.optimizer.separates_matrices else set()
    groups: dict[tuple[float, float, bool, str], ParamGroup] = {}
    for name, parameter in parameters.items():
        lr, decay = rates.get(name, job.train.optimizer.lr), job.train.optimizer.weight_decay
        if group := chosen.get(name):
            lr = group.lr or lr
            decay = decay if group.weight_decay is None else group.weight_decay
        decay = decay if parameter.ndim > 1 else 0.0
        matrix, span = parameter in for_muon, TrainingSpan.of(group)
        key = (lr, decay, matrix, repr(span))  # 1 step is not 1.0 of all steps
        same = groups.setdefault(key, _new_group(lr, decay, matrix, span))
        same["params"].append(parameter)
    return list(groups.values())


def _new_group(lr: float, decay: float, matrix: bool, span: TrainingSpan) -> ParamGroup:
    return {
        "params": [],
        "lr": lr,
        "weight_decay": decay,
        "base_lr": lr,
        "base_weight_decay": decay,
        "matrix": matrix,
        "span": span,
    }


def _match_param_groups(job: Job, names: Iterable[str]) -> dict[str, ParamGroupConfig]:
    """Return the first group of `train.param_groups` that matches each parameter, by the parameter's name."""
    chosen: dict[str, ParamGroupConfig] = {}
    for number, group in enumerate(job.train.param_groups):
        matched = [name for name in names if fnmatchcase(name, group.pattern)]
        if not matched:
            raise SpecError(
                f"train.param_groups.{number}.pattern: `{group.pattern}` matches no trainable parameter; "
                f"similar names: {', '.join(_closest_names(group.pattern, names))}"
            )
        chosen = {**dict.fromkeys(matched, group), **chosen}
    return chosen


def _closest_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most similar to a pattern."""
    wanted = pattern.replace("*", "")
    matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)

    def similarity(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.find_longest_match().size / max(1, len(wanted)) + matcher.ratio()

    return sorted(names, key=similarity, reverse=True)[:_MAX_SUGGESTIONS]


def _task_learning_rates(job: Job, names: Iterable[str]) -> dict[str, float]:
    """Return the learning rates of the language models of tasks that set one, by the names of their parameters."""
    rates = {f"tasks.{name}.lm.": getattr(task, "lr", None) for name, task in job.tasks.items()}
    return {
        name: lr
        for name in names
        for prefix, lr in rates.items()
        if lr is not None and name.startswith(prefix)
    }


def _encoder_learning_rates(job: Job, model: nn.Module) -> dict[str, float]:
    """Return the learning rates of encoder parameters by name; an inner encoder's rate overrides the outer one's."""
    rates: dict[str, float] = {}
    for name, source in job.inputs.items():
        lr = job.train.optimizer.lr
        for path, options in iter_encoders(source.encoder):
            prefix = ".".join(["encoders", name, *path])
            lr = options.lr or lr
            factor = options.layer_decay if isinstance(options, LayeredEncoderConfig) else 1.0
            depths = depths_from_top(model.get_submodule(prefix))
            rates |= {f"{prefix}.{inner}": lr * factor**depth for inner, depth in depths.items()}
    return rates
