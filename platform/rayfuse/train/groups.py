"""The groups of parameters that an optimizer works on: one for each pair of learning rate and weight decay."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rayfuse.errors import SpecError
from rayfuse.model.encoders.stack import depths_from_top
from rayfuse.model.fused import trainable_parameters
from rayfuse.spec.encoders import LayeredEncoder, encoders_in
from rayfuse.spec.job import Job
from rayfuse.train.optimizers import Group, matrices

_NAMES_SHOWN = 5


def parameter_groups(job: Job, model: nn.Module) -> list[Group]:
    """Trainable parameters by learning rate and weight decay; norms, biases and single vectors do not decay.

    Raises SpecError where a pattern of `train.groups` matches no trained parameter.
    """
    parameters = trainable_parameters(model)
    chosen = _chosen(job, parameters)
    rates = _encoder_rates(job, model)
    for_muon = matrices(model) if job.train.optimizer.type == "muon" else set()
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        lr, decay = rates.get(name, job.train.optimizer.lr), job.train.optimizer.weight_decay
        if name in chosen:
            lr = chosen[name].lr or lr
            decay = decay if chosen[name].weight_decay is None else chosen[name].weight_decay
        key = (lr, decay if parameter.ndim > 1 else 0.0, parameter in for_muon)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "lr": lr, "weight_decay": decay, "base_lr": lr, "matrix": matrix}
        for (lr, decay, matrix), members in groups.items()
    ]


def _chosen(job: Job, names: Iterable[str]) -> dict[str, Any]:
    """The group of `train.groups` that each parameter is in, by the parameter's name: the first that matches."""
    chosen: dict[str, Any] = {}
    for number, group in enumerate(job.train.groups):
        matched = [name for name in names if fnmatchcase(name, group.match)]
        if not matched:
            raise SpecError(
                f"train.groups.{number}.match: `{group.match}` is the name of no parameter that is trained; "
                f"near it are: {', '.join(_near(group.match, names))}"
            )
        chosen = {**dict.fromkeys(matched, group), **chosen}
    return chosen


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that look most like a pattern."""
    wanted = pattern.replace("*", "")
    alike = difflib.SequenceMatcher(b=wanted, autojunk=False)

    def likeness(name: str) -> float:
        alike.set_seq1(name)
        return alike.find_longest_match().size / max(1, len(wanted)) + alike.ratio()

    return sorted(names, key=likeness, reverse=True)[:_NAMES_SHOWN]


def _encoder_rates(job: Job, model: nn.Module) -> dict[str, float]:
    """Learning rates of the encoders' parameters by name: each encoder's own, and an inner encoder's inside it."""
    rates: dict[str, float] = {}
    for name, source in job.inputs.items():
        lr = job.train.optimizer.lr
        for path, options in encoders_in(source.encoder):
            prefix = ".".join(["encoders", name, *path])
            lr = options.lr or lr
            factor = options.layer_decay if isinstance(options, LayeredEncoder) else 1.0
            depths = depths_from_top(model.get_submodule(prefix))
            rates |= {f"{prefix}.{inner}": lr * factor**depth for inner, depth in depths.items()}
    return rates
