"""A text generator over a decoder's thread: what a served language model plugs into the OpenAI routes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayfuse.decoding.prompt import prompt_length
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.decoding.stream import DecoderThread, ReplyStream
from rayfuse.errors import InvalidInputError
from rayfuse.serving.openai_generator import GenerationRequest
from rayfuse.serving.streaming import Reply

if TYPE_CHECKING:
    from rayfuse.decoding.json_schema import GrammarVocabulary

Render = Callable[[GenerationRequest], Awaitable[DecodeRequest]]
"""Turns a request into the prompt of the model: chat template, spans of other inputs, encoder input.

Its sampling parameters are set afterwards, and so is the constraint of a request that has a JSON schema. Raises
InvalidInputError or ProblemError.
"""

_DEFAULTS = SamplingParams(temperature=1.0)


class DecoderGenerator:
    """Replies of a decoder, with the prompts that `render` makes.

    `defaults`: sampling parameters of requests that give none; `max_tokens` only as far as the slot has room.
    `max_tokens`: largest number of tokens that a request may ask for.
    """

    def __init__(
        self,
        thread: DecoderThread,
        render: Render,
        tokenizer: Any,
        *,
        defaults: SamplingParams = _DEFAULTS,
        max_tokens: int | None = None,
        created: int | None = None,
    ) -> None:
        self.defaults = defaults
        self.created = int(time.time()) if created is None else created
        self._thread = thread
        self._render = render
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._vocabulary: GrammarVocabulary | None = None

    async def open(self, request: GenerationRequest) -> Reply:
        """Start a reply. Raises InvalidInputError, ProblemError or DecoderBusyError."""
        return await self._start(request)

    async def _start(self, request: GenerationRequest) -> ReplyStream:
        self._check_limit(request.sampling.max_tokens)
        rendered = await self._render(request)
        constraint = rendered.constraint
        if request.json_schema is not None:
            vocabulary = await asyncio.to_thread(self._grammar_vocabulary)
            constraint = await asyncio.to_thread(vocabulary.json_schema, request.json_schema)
        params = request.sampling
        if params.max_tokens is None:
            params = replace(params, max_tokens=self._default_limit(rendered))
        return self._thread.open(replace(rendered, params=params, constraint=constraint))

    def token_text(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for."""
        known = self._grammar_vocabulary().token_bytes
        # A model may have more logits than its tokenizer has tokens.
        return known[token_id] if token_id < len(known) else b""

    def _check_limit(self, max_tokens: int | None) -> None:
        if max_tokens is not None and self._max_tokens is not None and max_tokens > self._max_tokens:
            raise InvalidInputError(
                f"{max_tokens} is above the {self._max_tokens} tokens that a request may ask for "
                "(generation.max_tokens)",
                "max_tokens",
            )

    def _default_limit(self, request: DecodeRequest) -> int | None:
        """Return the number of tokens of a reply whose request states none; None for as many as fit."""
        limits = [limit for limit in (self.defaults.max_tokens, self._max_tokens) if limit is not None]
        room = self._thread.decoder.max_length - prompt_length(request.prompt) + 1
        return max(1, min(room, *limits)) if limits else None

    def _grammar_vocabulary(self) -> "GrammarVocabulary":
        from rayfuse.decoding.json_schema import GrammarVocabulary  # imports transformers

        if self._vocabulary is None:
            self._vocabulary = GrammarVocabulary(self._tokenizer, self._thread.decoder.end_tokens)
        return self._vocabulary
