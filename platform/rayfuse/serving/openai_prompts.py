"""Messages of OpenAI requests as the inputs of a generation task's prompt."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from rayfuse.decoding.request import DecodeRequest
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.messages import Message
from rayfuse.serving import protocol
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_generator import ChatMessage, FilePart, GenerationRequest, TextPart
from rayfuse.serving.problems import ProblemError
from rayfuse.serving.protocol import PredictRequest, Values
from rayfuse.spec.inputs import Input

_SYSTEM_ROLES = ("system", "developer")


class TaskPrompts:
    """Prompts of one generation task of a served model, from the requests of the OpenAI routes.

    A dialogue fills the prompt that the task was trained with: its text is the text input of the prompt, its images and
    sounds are inputs of these types, and other inputs are given next to the messages.
    """

    def __init__(self, engine: InferenceEngine, task: str) -> None:
        self._engine = engine
        self._task = task
        self._decoding = engine.texts.decodings[task]

    async def __call__(self, request: GenerationRequest) -> DecodeRequest:
        """Return the prompt of a request. Raises InvalidInputError or ProblemError."""
        if request.prompt is not None:
            return await asyncio.to_thread(self._continue, request)
        self._check_language(request.language)
        signature = self._engine.signature
        given = protocol.parse_inputs(request.inputs, signature)
        texts = [
            name for name in self._decoding.prompt_inputs if signature.inputs[name].type in ("text", "chat")
        ]
        values, dialogue = to_inputs(request.messages or (), given, signature.inputs, texts)
        with self._engine.admit(), _named_messages(chat_input(texts, signature.inputs)):
            prepared = await self._engine.prepare(PredictRequest([values], is_batch=False))
        inputs = prepared.prompts[self._task]
        rendered = await asyncio.to_thread(self._decoding.render, inputs, dialogue)
        return self._add_time_stamps(rendered) if request.time_stamps else rendered

    def _add_time_stamps(self, rendered: DecodeRequest) -> DecodeRequest:
        if self._decoding.time_stamps is None:
            raise InvalidInputError("this model writes no time stamps; use json or text", "response_format")
        return self._decoding.time_stamps.request(rendered)

    def _check_language(self, wanted: str | None) -> None:
        written = self._decoding.language
        if wanted is not None and written is not None and wanted != written:
            raise InvalidInputError(
                f"this model transcribes {written} and not {wanted}; leave it out", "language"
            )

    def _continue(self, request: GenerationRequest) -> DecodeRequest:
        if request.inputs:
            raise InvalidInputError("a completion has no inputs; send them to /chat/completions", "inputs")
        ids = request.prompt or ()
        if isinstance(ids, str):
            ids = self._decoding.tokenizer(ids)["input_ids"]
        return self._decoding.continuation(list(ids))


def to_inputs(
    messages: Sequence[ChatMessage], given: Values, inputs: Mapping[str, Input], texts: Sequence[str]
) -> tuple[Values, Dialogue | None]:
    """Return the values of a model's inputs, and the other turns of a dialogue.

    given: values of inputs that are not in messages; texts: texts and dialogues in the prompt. Files fill the inputs of
    their type in the order of the model. The messages are the value of the prompt's dialogue, if it has one. Else the text
    of the last one fills the text input that has no value yet; if there is none, it takes the place of the words of the
    prompt. Raises InvalidInputError if the messages do not fit.
    """
    last = messages[-1]
    if last.role != "user":
        raise InvalidInputError(f"the last message has the role {last.role}; it must be a user's", "messages")
    values = _add_files(messages, given, inputs)
    chat = chat_input(texts, inputs)
    if chat is not None:
        if chat in given:
            raise InvalidInputError(
                f"the messages are the value of `{chat}`; leave it out of `inputs`", "inputs"
            )
        kinds = {options.type for options in inputs.values() if options.dialogue == chat}
        return {**values, chat: [_to_value(message, kinds) for message in messages]}, None
    earlier = messages[:-1]
    leading = next(
        (place for place, one in enumerate(earlier) if one.role not in _SYSTEM_ROLES), len(earlier)
    )
    system = "\n".join(message.text for message in earlier[:leading]) or None
    turns = tuple(Message(_role(message), message.text) for message in earlier[leading:])
    free = [name for name in texts if name not in values]
    if not last.text.strip() or not free:
        return values, Dialogue(system, turns, last.text.strip() or None)
    if len(free) > 1:
        raise InvalidInputError(
            f"the prompt of this model has the texts {', '.join(free)}; send all but one of them as `inputs`",
            "messages",
        )
    return {**values, free[0]: last.text}, Dialogue(system, turns)


def chat_input(names: Sequence[str], inputs: Mapping[str, Input]) -> str | None:
    """Return the first of some inputs that is a dialogue; None if there is none."""
    return next((name for name in names if inputs[name].type == "chat"), None)


def _to_value(message: ChatMessage, kinds: Set[str]) -> dict[str, Any]:
    """Return a message as the value of a dialogue has it; kinds: types of the files that stand in messages."""
    content = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": part.kind}
        for part in message.parts
        if isinstance(part, TextPart) or part.kind in kinds
    ]
    return {"role": message.role, "content": content or ""}


@contextmanager
def _named_messages(chat: str | None) -> Iterator[None]:
    """Raise problems of the input `chat` as those of the request's messages."""
    try:
        yield
    except ProblemError as problem:
        if chat is None or problem.extensions.get("input") != chat:
            raise
        detail = f"messages{problem.detail.removeprefix(chat)}"
        raise ProblemError(
            problem.problem_type, detail, **{**problem.extensions, "input": "messages"}
        ) from None


def _role(message: ChatMessage) -> str:
    return "system" if message.role in _SYSTEM_ROLES else message.role


def _add_files(messages: Sequence[ChatMessage], given: Values, inputs: Mapping[str, Input]) -> dict[str, Any]:
    values = dict(given)
    room = {name: options.max_items for name, options in inputs.items() if name not in given}
    files = [part for message in messages for part in message.parts if isinstance(part, FilePart)]
    for file in files:
        fitting = [name for name, options in inputs.items() if options.type == file.kind]
        name = next((one for one in fitting if room.get(one)), None)
        if name is None:
            raise InvalidInputError(_no_room(file.kind, fitting, inputs, files, given), "messages")
        room[name] -= 1
        if inputs[name].max_items == 1:
            values[name] = file.content
        else:
            values.setdefault(name, []).append(file.content)
    return values


def _no_room(
    kind: str, fitting: Sequence[str], inputs: Mapping[str, Input], files: Sequence[FilePart], given: Values
) -> str:
    noun = {"image": "images", "audio": "sounds"}[kind]
    if not fitting:
        return f"this model reads no {noun}; its inputs are: {', '.join(inputs)}"
    most = sum(inputs[name].max_items for name in fitting if name not in given)
    count = sum(file.kind == kind for file in files)
    return (
        f"the messages have {count} {noun}, and this model reads up to {most} of them ({', '.join(fitting)})"
    )
