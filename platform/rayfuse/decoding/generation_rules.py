"""End tokens and logits rules of a model's generation config, as `generate` of transformers applies them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


class GenerationRules:
    """Rules of a model's generation config for every reply.

    Sampling parameters of the config are not among it: each request brings its own.
    """

    def __init__(self, model: Any, end_tokens: Iterable[int] | None = None) -> None:
        self._config = getattr(model, "generation_config", None)
        text_config = model.config.get_text_config(decoder=True)
        configured = _as_set(self._get("eos_token_id")) or _as_set(getattr(text_config, "eos_token_id", None))
        self.end_tokens = configured if end_tokens is None else frozenset(end_tokens)

    def for_request(self, prompt_length: int, device: torch.device) -> "RequestRules | None":
        """Return the rules for one reply behind a prompt of this length; None where the config has none."""
        processors = LogitsProcessorList()
        if (penalty := self._get("repetition_penalty")) not in (None, 1.0):
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if size := self._get("no_repeat_ngram_size"):
            processors.append(NoRepeatNGramLogitsProcessor(size))
        if words := self._get("bad_words_ids"):
            processors.append(NoBadWordsLogitsProcessor(words, sorted(self.end_tokens)))
        if tokens := self._get("suppress_tokens"):
            processors.append(SuppressTokensLogitsProcessor(tokens, device=str(device)))
        if tokens := self._get("begin_suppress_tokens"):
            processors.append(SuppressTokensAtBeginLogitsProcessor(tokens, prompt_length, device=str(device)))
        if (token := self._get("forced_bos_token_id")) is not None:
            processors.append(ForcedBOSTokenLogitsProcessor(token))
        return RequestRules(processors) if processors else None

    def _get(self, name: str) -> Any:
        return getattr(self._config, name, None)


class RequestRules:
    """Logits rules of one reply."""

    def __init__(self, processors: LogitsProcessorList) -> None:
        self._processors = processors

    def apply(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Return logits (vocabulary,) with the rules applied; `token_ids` are the prompt's and the reply's so far."""
        ids: Any = torch.tensor([list(token_ids)], dtype=torch.long, device=logits.device)
        processed: torch.Tensor = self._processors(ids, logits[None].float())[0]
        return processed


def _as_set(value: int | Sequence[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
