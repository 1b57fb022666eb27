"""Checks of requests, before they are queued."""

from collections.abc import Iterable
from typing import Any

from rayfuse.decoding.generation_rules import GenerationRules
from rayfuse.decoding.model_runner import ModelRunner
from rayfuse.decoding.prompt import Prompt
from rayfuse.decoding.request import ContextLengthError, DecodeRequest
from rayfuse.decoding.sequence import ActiveSequence
from rayfuse.errors import InvalidInputError


class RequestPreparer:
    """Turns requests into sequences for slots of `max_length` positions, with sources of up to `max_source_length`."""

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Any,
        max_length: int,
        max_source_length: int,
        end_tokens: Iterable[int] | None = None,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_source_length = max_source_length
        self._rules = GenerationRules(runner.base, end_tokens)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Return the tokens that end a reply."""
        return self._rules.end_tokens

    def prepare(self, request_id: int, request: DecodeRequest) -> ActiveSequence:
        """Return the state of a request that has not begun. Raises InvalidInputError if it cannot be decoded."""
        runner = self._runner
        spans = request.prompt
        if runner.is_encoder_decoder:
            if (request.source is None) == (request.encoder_states is None):
                raise InvalidInputError(
                    "an encoder–decoder model takes exactly one of source and encoder_states", "source"
                )
            self._check_source(request)
            if not len(spans) and runner.start_token is not None:
                spans = [runner.start_token]
        elif request.source is not None:
            raise InvalidInputError("a causal model has no encoder; put the source into the prompt", "source")
        elif runner.inputs is not None:
            self._check_source(request)
        prompt = Prompt(
            spans,
            hidden_size=runner.hidden_size,
            vocab_size=runner.vocab_size,
            states=None if runner.is_encoder_decoder else request.encoder_states,
        )
        limit = self._limit(request, len(prompt))
        if request.params.stop and self._tokenizer is None:
            raise InvalidInputError("stop strings need a tokenizer, and the decoder has none", "stop")
        if request.adapter is not None and request.adapter not in runner.adapters:
            known = ", ".join(runner.adapters) or "(none)"
            raise InvalidInputError(
                f"the model has no adapter {request.adapter!r}; choose one of {known}", "adapter"
            )
        if request.constraint is not None:
            request.constraint.check_budget(limit)
        return ActiveSequence(request_id, request, prompt, limit, self._rules, self._tokenizer)

    def _check_source(self, request: DecodeRequest) -> None:
        """Raise ContextLengthError for a source that is too long; that of features is known after the encoder's pass."""
        source = request.source if request.encoder_states is None else request.encoder_states
        if source is None or (request.encoder_states is None and self._runner.takes_features):
            return
        if len(source) > self._max_source_length:
            raise ContextLengthError(
                f"the source has {len(source)} positions, and a slot has {self._max_source_length}; shorten it or "
                "raise max_source_length",
                "source",
            )

    def _limit(self, request: DecodeRequest, prompt_length: int) -> int:
        """Return how many tokens the reply may have. The last one takes no position."""
        if not prompt_length:
            raise InvalidInputError("the prompt is empty; it needs at least one token", "prompt")
        room = self._max_length - prompt_length + 1
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {prompt_length} positions, and a slot has {self._max_length}; shorten the prompt",
                "prompt",
            )
        wanted = request.params.max_tokens or room
        if wanted > room:
            raise ContextLengthError(
                f"{wanted} tokens do not fit: the prompt has {prompt_length} of a slot's {self._max_length} positions; "
                f"ask for at most {room}",
                "max_tokens",
            )
        return wanted
