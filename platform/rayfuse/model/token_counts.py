"""Largest numbers of aligned tokens of inputs."""

import torch
from torch import nn

from rayfuse.modalities import build_modality
from rayfuse.model.language_model import is_sharded
from rayfuse.spec.job import Job


def max_aligned_tokens(job: Job, model: nn.Module, name: str) -> int:
    """Return the largest number of aligned tokens of an input of a model.

    That of an encoder without a fixed number is the number of its longest value; with sharded weights, which cannot run
    here, one.
    """
    options = job.inputs[name]
    per_value = job.align_of(name).tokens_per_value
    if per_value is None:
        per_value = max_encoded_tokens(job, model, name) if options.encoder.outputs_tokens else 1
    return per_value * options.max_items


def max_encoded_tokens(job: Job, model: nn.Module, name: str) -> int:
    """Return the number of tokens of the longest value of an input, as its encoder returns them; one if it is sharded."""
    encoder = model.get_submodule(f"encoders.{name}")
    if is_sharded(encoder):
        return 1
    modality = build_modality(job.inputs[name])
    features = modality.collate([modality.longest_features()])
    was_training = encoder.training
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    with torch.no_grad():
        tokens, _ = encoder.eval()(
            **{key: torch.as_tensor(value, device=device) for key, value in features.items()}
        )
    encoder.train(was_training)
    return int(tokens.shape[1])
