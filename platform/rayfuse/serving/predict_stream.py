"""Streams of POST /predict: the texts of a prediction as they are written, then the prediction.

Events `text` have {"task", "text"}: the next part of a text. The last event is `prediction`, with the response of a
request without `stream`, or `error`, with a problem.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from rayfuse.decoding.stream import ReplyStream
from rayfuse.errors import RayfuseError
from rayfuse.model.predictor import PreparedSample
from rayfuse.serving import protocol
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.protocol import PredictRequest
from rayfuse.serving.streaming import EventStream, encode_event, merge
from rayfuse.serving.text_engine import decoding_problem

_log = logging.getLogger(__name__)


async def stream_prediction(engine: InferenceEngine, request: PredictRequest) -> EventStream:
    """Start the texts of a request and return their stream; raise ProblemError if they cannot be started."""
    if not engine.texts.tasks:
        raise ProblemError("malformed", "stream: this model has no task whose texts can be streamed")
    if request.is_batch or request.explain:
        raise ProblemError("malformed", 'stream: send "inputs", without "instances" and "explain"')
    prepared = await engine.prepare(request)
    try:
        streams = await engine.texts.open(prepared)
    except RayfuseError as error:
        raise decoding_problem(error) from None
    return EventStream(_events(engine, request, prepared, streams), list(streams.values()))


async def _events(
    engine: InferenceEngine,
    request: PredictRequest,
    prepared: PreparedSample,
    streams: dict[str, ReplyStream],
) -> AsyncIterator[bytes]:
    names, timeout = list(streams), engine.settings.request_timeout
    tokens: dict[str, list[int]] = {name: [] for name in names}
    try:
        async for index, piece in merge(list(streams.values()), timeout):
            tokens[names[index]].extend(piece.token_ids)
            if piece.text:
                yield encode_event({"task": names[index], "text": piece.text}, "text")
        prediction = await asyncio.to_thread(engine.texts.join, prepared, tokens)
        yield encode_event(protocol.build_response(request, [prediction], engine.model), "prediction")
    except TimeoutError:
        problem = ProblemError("timeout", f"no end within {timeout:g} s (limits.request_timeout)")
        yield encode_event(problem.body, "error")
    except Exception:  # noqa: BLE001 - logged with its traceback
        _log.exception("a stream of /predict failed")
        yield encode_event(ProblemError("internal", "see the endpoint's log").body, "error")
