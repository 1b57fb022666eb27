"""Replies of a language model to a batch of prompts, decoded by `rayfuse.decoding`."""

from collections.abc import Callable, Sequence

import torch

from rayfuse.decoding.constraint import TokenConstraint
from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.model_runner import ModelRunner
from rayfuse.decoding.request import DecodeRequest, SamplingParams, Span
from rayfuse.model.language_model import LanguageModel, is_sharded
from rayfuse.spec.tasks.generation import DecodingConfig

PromptSpans = list[Span]
"""A prompt as spans of token ids and of embeddings, float (length, width)."""

NewConstraint = Callable[[], TokenConstraint | None]
"""Returns what restricts the tokens of one reply, if anything."""

_PREFILL_TOKENS = 4096
"""Positions of prompts in a forward pass: no one waits for the first tokens of a batch."""


def unconstrained() -> None:
    """Return no constraint: all tokens are allowed."""


def slot_runner(model: LanguageModel, decoding: DecodingConfig) -> ModelRunner | None:
    """Return what `decode_tokens` runs with these settings; None where `generate_tokens` must be used instead.

    Decoding in slots has no beam search. It cannot run where weights are sharded over ranks, which must all make the
    same number of steps, nor with layers whose state has no slots.
    """
    return None if decoding.num_beams > 1 or is_sharded(model.causal) else model.runner


def decode_tokens(
    runner: ModelRunner,
    prompts: Sequence[PromptSpans],
    stop_ids: Sequence[int],
    max_tokens: int,
    decoding: DecodingConfig,
    constraint: NewConstraint = unconstrained,
) -> torch.Tensor:
    """Decode up to `max_tokens` tokens after each prompt, int64 (batch, tokens).

    A reply ends at the first of `stop_ids`, and is padded with the first of them. `constraint` returns what restricts a
    reply, for each of them. Raises RayfuseError if the model computes NaN.
    """
    longest = max(sum(map(len, prompt)) for prompt in prompts)
    decoder = Decoder(
        runner,
        max_slots=len(prompts),
        max_length=longest + max_tokens,
        prefill_tokens=_PREFILL_TOKENS,
        end_tokens=stop_ids,
    )
    requests = [
        DecodeRequest(prompt, sampling_params(decoding, max_tokens), constraint=constraint())
        for prompt in prompts
    ]
    replies = [torch.tensor(done.token_ids) for done in decoder.generate(requests)]
    padded = torch.nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=stop_ids[0])
    return padded.to(runner.device)


def sampling_params(decoding: DecodingConfig, max_tokens: int) -> SamplingParams:
    """Return the settings of one reply; the seed of sampling is drawn from torch's random numbers."""
    seed = int(torch.randint(2**62, ())) if decoding.temperature else None
    return SamplingParams(max_tokens, decoding.temperature, decoding.top_p, seed=seed)
