"""Replies of a language model to a batch of prompts, decoded by `rayfuse.decoding`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rayfuse.decoding.prompt import prompt_length
from rayfuse.decoding.request import DecodeRequest, SamplingParams, Span
from rayfuse.model.language_model import LanguageModel, is_sharded
from rayfuse.spec.tasks.generation import DecodingConfig

if TYPE_CHECKING:
    from rayfuse.decoding.model_runner import ModelRunner

PromptSpans = list[Span]
"""A prompt as spans of token ids and of embeddings, float (length, width)."""

_PREFILL_TOKENS = 4096
"""Positions of prompts in a forward pass: no one waits for the first tokens of a batch."""


def slot_runner(model: LanguageModel, decoding: DecodingConfig) -> "ModelRunner | None":
    """Return what `decode_tokens` runs with these settings; None where `generate` of transformers must be used instead.

    Decoding in slots has no beam search. It cannot run where weights are sharded over ranks, which must all make the
    same number of steps, nor with layers whose state has no slots.
    """
    return None if decoding.num_beams > 1 or is_sharded(model.transformer) else model.runner


def decode_tokens(
    runner: "ModelRunner",
    requests: Sequence[DecodeRequest],
    stop_ids: Sequence[int],
    max_tokens: int,
    decoding: DecodingConfig,
) -> torch.Tensor:
    """Decode up to `max_tokens` tokens of each request, int64 (batch, tokens). The settings of requests are replaced.

    A reply ends at the first of `stop_ids`, and is padded with the first of them. Raises RayfuseError if the model
    computes NaN.
    """
    from rayfuse.decoding.decoder import Decoder  # imports transformers

    longest = max(prompt_length(request.prompt) for request in requests)
    decoder = Decoder(
        runner,
        max_slots=len(requests),
        max_length=longest + max_tokens,
        max_source_length=max(map(_source_length, requests)),
        prefill_tokens=_PREFILL_TOKENS,
        end_tokens=stop_ids,
    )
    asked = [replace(request, params=sampling_params(decoding, max_tokens)) for request in requests]
    replies = [torch.tensor(done.token_ids) for done in decoder.generate(asked)]
    padded = torch.nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=stop_ids[0])
    return padded.to(runner.device)


def _source_length(request: DecodeRequest) -> int:
    source = request.source if request.encoder_states is None else request.encoder_states
    return 0 if source is None else len(source)


def sampling_params(decoding: DecodingConfig, max_tokens: int) -> SamplingParams:
    """Return the settings of one reply; the seed of sampling is drawn from torch's random numbers."""
    seed = int(torch.randint(2**62, ())) if decoding.temperature else None
    return SamplingParams(max_tokens, decoding.temperature, decoding.top_p, seed=seed)
