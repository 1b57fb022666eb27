"""Replies of the OpenAI routes: as one object, and as the events of a stream."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from starlette.responses import Response

from rayfuse.decoding.request import Completion, FinishReason, Piece, TokenLogprob
from rayfuse.serving.openai_requests import ChatRequest, CompletionRequest, ResponsesRequest
from rayfuse.serving.problems import to_json

Event = dict[str, Any]
TokenText = Callable[[int], bytes]

FINISH_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "cancelled": "stop"}


class ReplyForm(Protocol):
    """The form of a route's replies, for one request."""

    done: bytes
    """End of a stream, behind its last event."""

    def whole(self, completions: Sequence[Completion]) -> Event:
        """Return the body of a plain response."""
        ...

    def response(self, completions: Sequence[Completion]) -> Response:
        """Return the plain response: `whole` as JSON, unless a route has other forms."""
        return Response(to_json(self.whole(completions)), media_type="application/json")

    def start(self) -> Iterator[Event]:
        """Yield the events in front of the first piece."""
        ...

    def piece(self, index: int, piece: Piece) -> Iterator[Event]:
        """Yield the events of a piece of choice `index`."""
        ...

    def end(self, completions: Sequence[Completion]) -> Iterator[Event]:
        """Yield the events behind the last piece."""
        ...


def new_id(prefix: str) -> str:
    """Return a random id such as `chatcmpl-1f…`."""
    return f"{prefix}{uuid.uuid4().hex}"


def usage(completions: Sequence[Completion]) -> Event:
    """Return the number of tokens; the prompts of several choices of a request count once."""
    prompt = completions[0].prompt_tokens
    generated = sum(len(completion.token_ids) for completion in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": completions[0].reused_tokens},
    }


class ChatForm(ReplyForm):
    """Objects `chat.completion` and `chat.completion.chunk`."""

    done = b"data: [DONE]\n\n"

    def __init__(self, request: ChatRequest, model: str, token_text: TokenText) -> None:
        self._request = request
        self._token_text = token_text
        self._choices = request.n or 1
        self._common = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": model}

    def whole(self, completions: Sequence[Completion]) -> Event:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": self._logprobs(completion.logprobs),
                "finish_reason": FINISH_REASONS[completion.finish_reason],
            }
            for index, completion in enumerate(completions)
        ]
        return {**self._common, "object": "chat.completion", "choices": choices, "usage": usage(completions)}

    def start(self) -> Iterator[Event]:
        for index in range(self._choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> Iterator[Event]:
        delta = {"content": piece.text} if piece.text else {}
        reason = None if piece.finish_reason is None else FINISH_REASONS[piece.finish_reason]
        yield self._chunk(index, delta, self._logprobs(piece.logprobs), reason)

    def end(self, completions: Sequence[Completion]) -> Iterator[Event]:
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield {
                **self._common,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage(completions),
            }

    def _chunk(
        self, index: int, delta: Event, logprobs: Event | None = None, reason: str | None = None
    ) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Event | None:
        if not self._request.logprobs:
            return None
        return {"content": list(map(self._token_logprob, logprobs)), "refusal": None}

    def _token_logprob(self, logprob: TokenLogprob) -> Event:
        top = [self._token(token, value) for token, value in logprob.top]
        return {**self._token(logprob.token_id, logprob.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> Event:
        content = self._token_text(token_id)
        return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}


class CompletionForm(ReplyForm):
    """Objects `text_completion`, in streams too."""

    done = b"data: [DONE]\n\n"

    def __init__(self, request: CompletionRequest, model: str, token_text: TokenText) -> None:
        self._request = request
        self._token_text = token_text
        self._offsets: dict[int, int] = {}
        self._common = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, completions: Sequence[Completion]) -> Event:
        choices = [
            self._choice(index, each.text, each.logprobs, each.finish_reason)
            for index, each in enumerate(completions)
        ]
        return {**self._common, "choices": choices, "usage": usage(completions)}

    def start(self) -> Iterator[Event]:
        return iter(())

    def piece(self, index: int, piece: Piece) -> Iterator[Event]:
        yield {
            **self._common,
            "choices": [self._choice(index, piece.text, piece.logprobs, piece.finish_reason)],
        }

    def end(self, completions: Sequence[Completion]) -> Iterator[Event]:
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield {**self._common, "choices": [], "usage": usage(completions)}

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: FinishReason | None
    ) -> Event:
        finish = None if reason is None else FINISH_REASONS[reason]
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": finish,
        }

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> Event | None:
        if self._request.logprobs is None:
            return None
        offsets = []
        for logprob in logprobs:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(self._text(logprob.token_id))
        return {
            "tokens": [self._text(logprob.token_id) for logprob in logprobs],
            "token_logprobs": [logprob.logprob for logprob in logprobs],
            "top_logprobs": [
                {self._text(token): value for token, value in logprob.top} for logprob in logprobs
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self._token_text(token_id).decode("utf-8", "replace")


class ResponsesForm(ReplyForm):
    """Object `response` with one message, and the events of its stream."""

    done = b""

    def __init__(self, request: ResponsesRequest, model: str, temperature: float) -> None:
        self._request = request
        self._id, self._message_id = new_id("resp_"), new_id("msg_")
        self._created = int(time.time())
        self._model, self._temperature = model, temperature
        self._sequence = 0

    def whole(self, completions: Sequence[Completion]) -> Event:
        completion = completions[0]
        status = "incomplete" if completion.finish_reason == "length" else "completed"
        counts = usage(completions)
        return self._response(status, [self._message(completion.text, status)]) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
        }

    def start(self) -> Iterator[Event]:
        yield self._event("created", response=self._response("in_progress", []))
        yield self._event("in_progress", response=self._response("in_progress", []))
        item = self._message("", "in_progress") | {"content": []}
        yield self._event("output_item.added", output_index=0, item=item)
        yield self._event("content_part.added", **self._place(), part=_output_text(""))

    def piece(self, index: int, piece: Piece) -> Iterator[Event]:
        if piece.text:
            yield self._event("output_text.delta", **self._place(), delta=piece.text, logprobs=[])

    def end(self, completions: Sequence[Completion]) -> Iterator[Event]:
        text = completions[0].text
        whole = self.whole(completions)
        yield self._event("output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("content_part.done", **self._place(), part=_output_text(text))
        yield self._event("output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(whole["status"], response=whole)

    def _event(self, kind: str, **members: Any) -> Event:
        self._sequence += 1
        return {"type": f"response.{kind}", "sequence_number": self._sequence - 1, **members}

    def _place(self) -> Event:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _message(self, text: str, status: str) -> Event:
        content = [_output_text(text)]
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(self, status: str, output: list[Event]) -> Event:
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": (request.model_extra or {}).get("metadata") or {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": self._temperature,
            "text": {
                "format": {"type": "text"} if request.text is None else request.text.format.model_dump()
            },
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "usage": None,
        }


def _output_text(text: str) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
