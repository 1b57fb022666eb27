"""Messages of OpenAI requests as the inputs of a prompt."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.messages import Message
from rayfuse.serving.openai_generator import ChatMessage, FilePart, TextPart
from rayfuse.serving.openai_prompts import to_inputs
from rayfuse.spec.inputs import Input

PROMPT = {"type": "text", "encoder": {"type": "prompt"}}
INPUTS: dict[str, Any] = TypeAdapter(dict[str, Input]).validate_python(
    {
        "first": {"type": "image", "column": "first"},
        "more": {"type": "image", "column": "more", "max_items": 2},
        "voice": {"type": "audio", "column": "voice"},
        "question": {**PROMPT, "column": "question"},
        "place": {**PROMPT, "column": "place"},
    }
)


def image(content: bytes) -> FilePart:
    return FilePart("image", content)


def message(role: Any, *parts: Any) -> ChatMessage:
    return ChatMessage(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def test_files_fill_the_inputs_of_their_type_in_order() -> None:
    sound = FilePart("audio", b"sound")
    turns = [
        message("user", image(b"1")),
        message("assistant", "ok"),
        message("user", sound, image(b"2"), image(b"3")),
    ]
    values, _ = to_inputs(turns, {}, INPUTS, ["question"])
    assert values == {"first": b"1", "more": [b"2", b"3"], "voice": b"sound"}
    values, _ = to_inputs([message("user", image(b"1"))], {"first": b"0"}, INPUTS, [])
    assert values == {"first": b"0", "more": [b"1"]}


def test_the_text_of_the_last_message_fills_the_free_text() -> None:
    [values, dialogue] = to_inputs(
        [message("user", "why", " not?")], {"place": "Oslo"}, INPUTS, ["question", "place"]
    )
    assert values == {"place": "Oslo", "question": "why not?"}
    assert dialogue == Dialogue()
    values, dialogue = to_inputs([message("user", "why?")], {}, INPUTS, [])
    assert (values, dialogue) == ({}, Dialogue(text="why?"))
    values, dialogue = to_inputs([message("user", image(b"1"), "  ")], {}, INPUTS, ["question"])
    assert (values, dialogue) == ({"first": b"1"}, Dialogue())


def test_other_messages_are_turns_of_the_dialogue() -> None:
    turns = [
        message("system", "Be kind."),
        message("developer", "Be brief."),
        message("user", "hi"),
        message("developer", "now in verse"),
        message("assistant", "hello"),
        message("user", "why?"),
    ]
    _, dialogue = to_inputs(turns, {}, INPUTS, ["question"])
    earlier = (Message("user", "hi"), Message("system", "now in verse"), Message("assistant", "hello"))
    assert dialogue == Dialogue("Be kind.\nBe brief.", earlier)


def test_the_messages_are_the_value_of_a_dialogue() -> None:
    """Files stand in them if an input reads the parts, and are inputs of the last turn otherwise."""
    inputs: Any = {**INPUTS, "chat": TypeAdapter(Input).validate_python({"type": "chat", "column": "chat"})}
    turns = [message("system", "Be kind."), message("user", image(b"1"), "why?")]
    values, dialogue = to_inputs(turns, {}, inputs, ["chat"])
    system = {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    words = {"type": "text", "text": "why?"}
    assert values == {"first": b"1", "chat": [system, {"role": "user", "content": [words]}]}
    assert dialogue is None
    inputs["first"] = inputs["first"].model_copy(update={"part_of": "chat"})
    values, _ = to_inputs(turns, {}, inputs, ["chat"])
    assert values == {
        "first": b"1",
        "chat": [system, {"role": "user", "content": [{"type": "image"}, words]}],
    }
    with pytest.raises(InvalidInputError, match="the messages are the value of `chat`"):
        to_inputs(turns, {"chat": []}, inputs, ["chat"])


@pytest.mark.parametrize(
    ("turns", "texts", "reason"),
    [
        ([message("assistant", "a")], [], "the last message has the role assistant"),
        ([message("user", "a")], ["question", "place"], "has the texts question, place; send all but one"),
        ([message("user", *[image(b"1")] * 4)], [], "have 4 images, and this model reads up to 3"),
    ],
)
def test_messages_that_do_not_fit(turns: Any, texts: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason) as raised:
        to_inputs(turns, {}, INPUTS, texts)
    assert raised.value.input_name == "messages"


def test_a_model_without_images_names_its_inputs() -> None:
    with pytest.raises(InvalidInputError, match="reads no images; its inputs are: question"):
        to_inputs([message("user", image(b"1"))], {}, {"question": INPUTS["question"]}, ["question"])
