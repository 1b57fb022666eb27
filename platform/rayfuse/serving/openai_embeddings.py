"""Embeddings of texts, for the OpenAI route `/v1/embeddings`."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rayfuse.data.samples import Sample
from rayfuse.errors import InvalidInputError
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_errors import OpenAIError
from rayfuse.serving.openai_requests import EmbeddingRequest
from rayfuse.serving.protocol import MAX_INSTANCES


class TextEmbedder(Protocol):
    """A model that the route serves under a name."""

    @property
    def created(self) -> int:
        """Unix time at which the model was created."""
        ...

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    async def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Return the unit vectors of texts, float32 (texts, dim), and the number of their tokens.

        Raises InvalidInputError for a text that cannot be embedded, with its path as the input name.
        """
        ...


class SideTextEmbedder:
    """One text input of a retrieval task of a served model."""

    def __init__(self, engine: InferenceEngine, task: str, input_name: str, created: int) -> None:
        options: Any = engine.predictor.job.tasks[task]
        self.created = created
        self.dim: int = options.dim
        self._engine, self._task, self._input = engine, task, input_name
        self._preprocessor = engine.predictor.side_preprocessor(input_name)

    async def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Return the unit vectors of texts and the number of their tokens (`TextEmbedder.embed`)."""
        with self._engine.admit():
            samples = await asyncio.to_thread(self._preprocess, texts)
            predictions = await self._engine.predict_prepared(samples)
        vectors = [one["outputs"][self._task]["embeddings"][self._input] for one in predictions]
        tokens = sum(len(next(iter(sample.features[self._input][0].values()))) for sample in samples)
        return np.array(vectors, dtype=np.float32), tokens

    def _preprocess(self, texts: Sequence[str]) -> list[Sample]:
        return [self._preprocess_one(place, text) for place, text in enumerate(texts)]

    def _preprocess_one(self, place: int, text: str) -> Sample:
        try:
            return self._preprocessor.from_values({self._input: text})
        except InvalidInputError as error:
            raise InvalidInputError(error.reason, f"input.{place}") from None


def requested_texts(body: EmbeddingRequest, dim: int) -> list[str]:
    """Return the texts of a request. Raises OpenAIError for too many, an empty one, or other dimensions than `dim`."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts or len(texts) > MAX_INSTANCES:
        reason = f"input: {len(texts)} texts; send between 1 and {MAX_INSTANCES}"
        raise OpenAIError(400, reason, "input", "invalid_value")
    for place, text in enumerate(texts):
        if not text.strip():
            raise OpenAIError(400, "the text is empty; send a text", f"input.{place}", "invalid_value")
    if body.dimensions not in (None, dim):
        reason = (
            f"dimensions: {body.dimensions} is not {dim}, the length of this model's embeddings; leave it out"
        )
        raise OpenAIError(400, reason, "dimensions", "invalid_value")
    return texts


def embedding_response(body: EmbeddingRequest, vectors: np.ndarray, tokens: int) -> dict[str, Any]:
    """Return the response to a request, with vectors as lists of numbers or as base64 of float32 values."""
    data = [
        {"object": "embedding", "index": place, "embedding": _encode(vector, body.encoding_format)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _encode(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        found: list[float] = vector.tolist()
        return found
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
