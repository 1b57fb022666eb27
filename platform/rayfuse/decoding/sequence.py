"""A request in progress: its prompt, its tokens, and its text so far."""

from collections.abc import Hashable
from typing import Any

import torch

from rayfuse.decoding.generation_rules import GenerationRules
from rayfuse.decoding.prompt import Prompt
from rayfuse.decoding.request import DecodeRequest, FinishReason, Piece, TokenLogprob
from rayfuse.decoding.sampling import Sampler
from rayfuse.decoding.text_stream import Detokenizer, StopStrings


class ActiveSequence:
    """The state of one request, from its first prompt token to its last piece."""

    def __init__(
        self,
        request_id: int,
        request: DecodeRequest,
        prompt: Prompt,
        limit: int,
        rules: GenerationRules,
        tokenizer: Any,
    ) -> None:
        self.id = request_id
        self.request = request
        self.prompt = prompt
        self.length = 0
        """Positions whose keys and values are in the cache."""
        self.reused = 0
        """Those of them that came from an earlier request."""
        self.generated: list[int] = []
        self.states: torch.Tensor | None = request.encoder_states
        self.limit = limit
        """Largest number of tokens of the reply."""
        self._end_tokens = frozenset() if request.params.ignore_eos else rules.end_tokens
        self._rule_tokens = prompt.token_ids(0, len(prompt)) if prompt.only_tokens else []
        self._rules = rules.for_request(len(self._rule_tokens), torch.device("cpu"))
        self._sampler = Sampler(request.params)
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stops = StopStrings(request.params.stop)
        self._unsent = 0
        self._logprobs: list[TokenLogprob] = []

    @property
    def keys(self) -> list[Hashable]:
        """Return a key for each position of prompt and reply; equal beginnings have equal keys and values."""
        return [*self.prompt.keys, *self.generated]

    @property
    def takes_argmax(self) -> bool:
        """Return True if the next token is the most probable one, without rules and log-probabilities."""
        params = self.request.params
        free = self._rules is None and self.request.constraint is None
        return free and params.temperature == 0 and params.top_logprobs is None

    def append(self, logits: torch.Tensor | None, argmax: int) -> Piece | None:
        """Append the next token; return a piece if text is final or the reply ends.

        `logits`: shape (vocabulary,), on the CPU; None where `takes_argmax`.
        """
        token = argmax if logits is None else self._choose(logits)
        self.generated.append(token)
        self._unsent += 1
        reason: FinishReason | None = None
        text = ""
        constraint = self.request.constraint
        if token in self._end_tokens:
            reason = "stop"
        else:
            text = self._stops.add(self._detokenizer.add(token)) if self._detokenizer else ""
            if self._stops.found or (constraint is not None and constraint.finished):
                reason = "stop"
            elif len(self.generated) >= self.limit:
                reason = "stop" if constraint is not None and constraint.complete else "length"
        if reason is not None and not self._stops.found:
            text += self._rest()
            reason = "stop" if self._stops.found else reason
        return self._piece(text, reason) if text or reason or self._detokenizer is None else None

    def cancel(self) -> Piece:
        """Return the last piece of a cancelled request."""
        return self._piece("", "cancelled")

    def _choose(self, logits: torch.Tensor) -> int:
        allowed = (
            logits
            if self._rules is None
            else self._rules.apply([*self._rule_tokens, *self.generated], logits)
        )
        constraint = self.request.constraint
        if constraint is not None:
            allowed = allowed.masked_fill(~constraint.allowed(allowed), -torch.inf)
        token = self._sampler.choose(allowed)
        if constraint is not None:
            token = constraint.advance(token, self.limit - len(self.generated) - 1)
        logprob = self._sampler.logprob(logits, token)
        if logprob is not None:
            self._logprobs.append(logprob)
        return token

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._stops.add(self._detokenizer.finish())
        return text if self._stops.found else text + self._stops.finish()

    def _piece(self, text: str, reason: FinishReason | None) -> Piece:
        tokens = tuple(self.generated[len(self.generated) - self._unsent :])
        piece = Piece(text, tokens, tuple(self._logprobs), reason, len(self.prompt), self.reused)
        self._unsent = 0
        self._logprobs = []
        return piece
