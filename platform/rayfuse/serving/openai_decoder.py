"""A text generator over a decoder's thread: what a served language model plugs into the OpenAI routes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from rayfuse.decoding.json_schema import GrammarVocabulary
from rayfuse.decoding.request import DecodeRequest
from rayfuse.decoding.stream import DecoderThread, ReplyStream
from rayfuse.serving.openai_generator import GenerationRequest

Render = Callable[[GenerationRequest], DecodeRequest]
"""Turns a request into the prompt of the model: chat template, spans of other inputs, encoder input.

Its sampling parameters and constraint are set afterwards. Raises InvalidInputError; runs in a separate thread.
"""


class DecoderGenerator:
    """Replies of a decoder, with the prompts that `render` makes."""

    def __init__(
        self,
        thread: DecoderThread,
        render: Render,
        tokenizer: Any,
        *,
        models: Sequence[str],
        default_temperature: float = 1.0,
        created: int | None = None,
    ) -> None:
        self.models = tuple(models)
        self.default_temperature = default_temperature
        self.created = int(time.time()) if created is None else created
        self._thread = thread
        self._render = render
        self._tokenizer = tokenizer
        self._vocabulary: GrammarVocabulary | None = None

    async def open(self, request: GenerationRequest) -> ReplyStream:
        """Start a reply. Raises InvalidInputError or DecoderBusyError."""
        prepared = await asyncio.to_thread(self._prepare, request)
        return self._thread.open(prepared)

    def token_text(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for."""
        known = self._grammar_vocabulary().token_bytes
        # A model may have more logits than its tokenizer has tokens.
        return known[token_id] if token_id < len(known) else b""

    def _prepare(self, request: GenerationRequest) -> DecodeRequest:
        rendered = self._render(request)
        constraint = None
        if request.json_schema is not None:
            constraint = self._grammar_vocabulary().json_schema(request.json_schema)
        return DecodeRequest(
            prompt=rendered.prompt,
            params=request.sampling,
            source=rendered.source,
            encoder_states=rendered.encoder_states,
            adapter=request.adapter or rendered.adapter,
            constraint=constraint,
        )

    def _grammar_vocabulary(self) -> GrammarVocabulary:
        if self._vocabulary is None:
            self._vocabulary = GrammarVocabulary(self._tokenizer, self._thread.decoder.end_tokens)
        return self._vocabulary
