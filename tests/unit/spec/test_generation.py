"""Specs of generation tasks: what is rejected, with path and remedy."""

from pathlib import Path
from typing import Any

import pytest
import tiny_generation
from pydantic import TypeAdapter

from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import GenerationTaskConfig

PLAIN = {"type": "text", "encoder": {"type": "conv"}}
PROMPT_TEXT = {"type": "text", "encoder": {"type": "prompt"}}
CROSS = {"type": "cross_attention"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spec")
    (folder / "smollm").mkdir()
    (folder / "data").mkdir()
    for name in ("train", "test"):
        (folder / "data" / f"{name}.jsonl").write_text("{}\n")
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"tasks.answer.prompt": "{imege}", "inputs.text": PLAIN},
            r"tasks\.answer\.prompt: no input `imege`; did you mean image",
        ),
        (
            {"tasks.answer.prompt": "Describe.", "inputs.text": PLAIN},
            r"tasks\.answer\.prompt: .*names no input; write one in braces",
        ),
        ({"tasks.answer.prompt": "{image}{image}"}, r"tasks\.answer\.prompt: .*names image twice"),
        ({"tasks.answer.prompt": "{image:3}"}, r"tasks\.answer\.prompt: .*name of an input alone"),
        ({"tasks.answer.prompt": "{image"}, r"tasks\.answer\.prompt: .*write \{\{ and \}\} for braces"),
        ({"tasks.answer.prompt": "{image}"}, r"inputs\.text\.encoder\.type: .*none names \{text\}"),
        ({"tasks.answer.metrics": ["blue"]}, r"tasks\.answer\.metrics\.0: .*bleu"),
        ({"tasks.answer.normalize": "whisper"}, r"tasks\.answer\.normalize: .*without wer or cer"),
        ({"tasks.answer.max_tokens": 0}, r"tasks\.answer\.max_tokens: .*at least 1"),
        ({"tasks.answer.decoding": {"top_p": 0.5}}, r"tasks\.answer\.decoding.*top_p.*set temperature"),
        (
            {"tasks.answer.decoding": {"num_beams": 4, "temperature": 1}},
            r"tasks\.answer\.decoding.*num_beams.*leave one of them out",
        ),
        (
            {"tasks.answer.json_schema": {}, "tasks.answer.decoding": {"num_beams": 4}},
            r"tasks\.answer\.json_schema: cannot restrict the search of decoding\.num_beams 4; set num_beams to 1",
        ),
        (
            {"tasks.answer.json_schema": "a.json", "train.deepspeed.stage": 3},
            r"tasks\.answer\.json_schema: .* ZeRO stage 3 shards the language model over workers; use stage 2",
        ),
        ({"tasks.answer.json_schema": ["a"]}, r"tasks\.answer\.json_schema: "),
        ({"tasks.answer.json_schema": ""}, r"tasks\.answer\.json_schema: "),
        ({"tasks.answer.lora": {"init_lora_weights": "eva"}}, r"tasks\.answer\.lora\.init_lora_weights: eva"),
        ({"align.loss": {"type": "consistency"}}, r"tasks\.answer\.type: .*remove that loss"),
        ({"fusion": {"type": "vote"}}, r"tasks\.answer\.type: .*use soft_tokens"),
        (
            {"tasks.answer.inject": "cross_attention"},
            r"tasks\.answer\.prompt: `image` has an encoder, .*; remove \{image\}, or use inject: soft_tokens",
        ),
        (
            {"tasks.answer.inject": "cross_atention"},
            r"tasks\.answer\.inject: unknown type `cross_atention`; did you mean cross_attention",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "every": 0}},
            r"tasks\.answer\.inject\.every: must be at least 1",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "evrey": 2}},
            r"tasks\.answer\.inject\.evrey: unknown key; did you mean every",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "inputs": ["imag"]}, "tasks.answer.prompt": None},
            r"tasks\.answer\.inject\.inputs: no input `imag`; did you mean image",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "inputs": ["text"]}, "tasks.answer.prompt": None},
            r"tasks\.answer\.inject\.inputs: `text` is a text of the prompt; write \{text\} there",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "inputs": ["image", "image"]}, "tasks.answer.prompt": None},
            r"tasks\.answer\.inject\.inputs: image, image: an input is listed twice",
        ),
        (
            {"tasks.answer.inject": {**CROSS, "inputs": []}, "tasks.answer.prompt": None},
            r"tasks\.answer\.inject\.inputs: is empty, and nothing is read; name an input, or set fused: true",
        ),
        (
            {"tasks.answer.inject": CROSS, "tasks.answer.prompt": None, "inputs.image": PROMPT_TEXT},
            r"tasks\.answer\.inject\.type: .* the job has none; use soft_tokens",
        ),
        ({"inputs.text.max_items": 2}, r"tasks\.answer\.prompt: `text` has several texts"),
        (
            {"inputs.text.augment": [{"type": "token_dropout"}]},
            r"inputs\.text\.encoder\.type: .*remove inputs\.text\.augment",
        ),
    ],
)
def test_invalid_tasks(overrides: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_generation.generation_job(folder, **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tasks.answer.reads": "text"}, r"tasks\.answer\.reads: no input `text`"),
        ({"tasks.answer.reads": "sound"}, r"tasks\.answer\.reads: no input `sound`; .*audio"),
        (
            {"tasks.answer.reads": "image"},
            r"tasks\.answer\.reads: the encoder of `image` does not return the tokens of this model's",
        ),
        ({"tasks.answer.prompt": "{audio}"}, r"tasks\.answer\.prompt: has no effect with reads"),
        ({"tasks.answer.system": "Listen."}, r"tasks\.answer\.system: has no effect with reads"),
        (
            {"tasks.answer.inject": CROSS},
            r"tasks\.answer\.inject: has no effect with reads, whose model reads `audio` itself; leave it out",
        ),
        ({"tasks.answer.task": "summarize"}, r"tasks\.answer\.task: .*transcribe"),
        (
            {"inputs.audio.encoder.pool": "mean"},
            r"tasks\.answer\.reads: .*set inputs\.audio\.encoder to .*pool: none",
        ),
        (
            {"inputs.audio.encoder": {"type": "conv"}},
            r"tasks\.answer\.reads: .*set inputs\.audio\.encoder to",
        ),
        (
            {"inputs.audio.encoder.hidden_states": [1, -1]},
            r"tasks\.answer\.reads: .*remove inputs\.audio\.encoder\.hidden_states",
        ),
        ({"inputs.audio.max_items": 2}, r"tasks\.answer\.reads: .*set inputs\.audio\.max_items to 1"),
        (
            {"tasks.answer.reads": None, "tasks.answer.language": "de"},
            r"tasks\.answer\.language: .*without an audio input in reads",
        ),
        (
            {"tasks.answer.reads": None, "tasks.answer.task": "translate"},
            r"tasks\.answer\.task: .*without an audio input in reads",
        ),
    ],
)
def test_invalid_speech_tasks(overrides: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "whisper").mkdir(exist_ok=True)
    with pytest.raises(SpecError, match=message):
        tiny_generation.speech_job(folder, **overrides)


def test_a_prompt_with_cross_attention_has_the_texts_only(folder: Path) -> None:
    task = {"prompt": None, "inject": "cross_attention"}
    job = tiny_generation.generation_job(folder, task=task, **{"inputs.other": PLAIN})
    answer = job.tasks["answer"]
    assert answer.prompt_parts(job.inputs) == [("", "text")]
    assert answer.inject.attended_inputs(job.inputs) == ["image", "other"]
    assert (answer.inject.every, answer.inject.heads) == (4, 8)
    chosen = answer.inject.model_copy(update={"inputs": ("other",)})
    assert chosen.attended_inputs(job.inputs) == ["other"]
    assert [answer.inject.num_sources(job.inputs), chosen.num_sources(job.inputs)] == [2, 1]
    fused = chosen.model_copy(update={"inputs": (), "fused": True})
    assert (fused.attended_inputs(job.inputs), fused.num_sources(job.inputs)) == ([], 1)
    task = {"prompt": "Describe the image.", "inject": {"type": "cross_attention", "every": 2}}
    job = tiny_generation.generation_job(folder, task=task, **{"inputs.text": PLAIN})
    assert job.tasks["answer"].prompt_parts(job.inputs) == [("Describe the image.", None)]


CHAT = {"type": "chat"}
TASK = {"type": "generation", "model": "smollm"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"inputs.more": CHAT, "tasks.reply.prompt": None}, r"tasks\.reply\.prompt: `messages` and `more` are dialogues"),
        ({"tasks.reply.prompt": "{image}{room}"}, r"inputs\.messages\.encoder\.type: .*none names \{messages\}"),
        ({"inputs.messages.max_items": 2}, r"inputs\.messages\.max_items: 2 is not 1, and a row has one dialogue"),
        ({"inputs.messages.max_tokens": 0}, r"inputs\.messages\.max_tokens: .*at least 1"),
        ({"inputs.messages.encoder": {"type": "conv"}}, r"inputs\.messages\.encoder.*prompt"),
        ({"inputs.messages.encoder": {"type": "a:B"}}, r"inputs\.messages\.encoder\.type: a:B cannot encode a dialogue"),
        ({"inputs.messages.augment": [{"type": "token_dropout"}]}, r"inputs\.messages\.augment"),
        (
            {"inputs.messages.column": "text", "inputs.messages.with_reply": True},
            r"inputs\.messages\.with_reply: no generation task has `column: text`",
        ),
        ({"inputs.image.part_of": "chat"}, r"inputs\.image\.part_of: no dialogue `chat`; one of: messages"),
        (
            {"inputs.image.part_of": "messages", "inputs.image.optional": False, "tasks.reply.prompt": None},
            r"inputs\.image\.optional: .*set optional: true",
        ),
        (
            {"inputs.image.part_of": "messages", "inputs.other": {"type": "image", "part_of": "messages", "optional": True},
             "tasks.reply.prompt": None},
            r"part_of: two inputs read the parts of type image of `messages`",
        ),
        ({"inputs.image.part_of": "messages"}, r"tasks\.reply\.prompt: `image` stands in the messages"),
        ({"inputs.messages.with_reply": False}, r"tasks: .*column `messages` is both an input and a target"),
        (
            {"tasks.reply.prompt": "{room}", "tasks.other": {**TASK, "column": "label", "prompt": "{messages}"},
             "tasks.reply.learned_replies": "all"},
            r"tasks\.reply\.learned_replies: has no effect without an input of type chat",
        ),
        (
            {"tasks.reply": {"type": "preference", "model": "smollm", "column": "better", "rejected": "worse",
                             "learned_replies": "all"}},
            r"tasks\.reply\.learned_replies: pairs have one better reply",
        ),
    ],
)  # fmt: skip
def test_invalid_dialogues(overrides: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_generation.dialogue_job(folder, "smollm", **overrides)


def test_a_dialogue_has_the_reply_if_a_task_has_its_column(folder: Path) -> None:
    same = tiny_generation.dialogue_job(folder, "smollm")
    assert same.inputs["messages"].with_reply
    other = tiny_generation.dialogue_job(folder, "smollm", {"column": "label"})
    assert not other.inputs["messages"].with_reply
    named = {"inputs.messages.column": "conversations", "tasks.reply.column": "conversations"}
    assert tiny_generation.dialogue_job(folder, "smollm", **named).inputs["messages"].with_reply
    assert Job.model_validate(same.model_dump(mode="json")) == same


def test_files_in_messages_have_the_column_of_the_dialogue(folder: Path) -> None:
    parts = {"inputs.image.part_of": "messages", "tasks.reply.prompt": None}
    job = tiny_generation.dialogue_job(folder, "smollm", **parts)
    assert job.inputs["image"].column == "messages"
    assert job.tasks["reply"].prompt_parts(job.inputs) == [("", "messages"), ("", "room")]
    own = tiny_generation.dialogue_job(folder, "smollm", **parts, **{"inputs.image.column": "images"})
    assert own.inputs["image"].column == "images"


def test_the_default_prompt_has_all_inputs(folder: Path) -> None:
    job = tiny_generation.generation_job(folder, task={"prompt": None})
    assert job.tasks["answer"].prompt_parts(job.inputs) == [("", "image"), ("", "text")]
    assert set(job.metric_modes()) == {
        "loss", "answer/loss", "answer/perplexity", "answer/token_accuracy", "answer/exact", "answer/token_f1",
    }  # fmt: skip
    assert [path for path, _ in job.pretrained_models()] == [("tasks", "answer")]


def reply_task(**options: Any) -> GenerationTaskConfig:
    content = {"type": "generation", "model": "m", "column": "reply", **options}
    return TypeAdapter(GenerationTaskConfig).validate_python(content)


def test_replies_are_texts_and_numbers() -> None:
    task = reply_task()
    assert task.reply({"reply": " yes \n"}) == "yes"
    assert task.reply({"reply": 12.0}) == "12"
    for value, reason in ((None, "missing"), ("  ", "empty"), ([1], "not a text"), (True, "not a text")):
        with pytest.raises(InvalidInputError, match=reason):
            task.reply({"reply": value})


def test_replies_with_a_schema_may_be_values() -> None:
    value = {"name": "Café", "levels": [1, 2.5, None]}
    assert reply_task(json_schema={}).reply({"reply": value}) == '{"name": "Café", "levels": [1, 2.5, null]}'
    assert reply_task(json_schema={}).reply({"reply": " [1] "}) == "[1]"
    assert reply_task(json_schema={}).reply({"reply": True}) == "true"
    with pytest.raises(InvalidInputError, match="not a text"):
        reply_task().reply({"reply": value})


def test_a_schema_is_a_path_beside_the_spec_or_an_object(folder: Path, tmp_path: Path) -> None:
    job = tiny_generation.generation_job(folder, task={"json_schema": "command.schema.json"})
    path = tmp_path / "job.yaml"
    job.to_yaml(path)
    path.write_text(path.read_text().replace(job.tasks["answer"].json_schema, "command.schema.json"))
    assert Job.from_yaml(path).tasks["answer"].json_schema == str(tmp_path / "command.schema.json")
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"const": "$x"}}}
    job.override(**{"tasks.answer.json_schema": schema}).to_yaml(path)
    assert "$$ref" in path.read_text()
    assert Job.from_yaml(path).tasks["answer"].json_schema == schema


def test_a_row_weighs_as_much_as_its_reply_has_tokens() -> None:
    assert reply_task().loss_weight([5.0, 6.0, 7.0]) == 3
    task = reply_task(references="photo")
    assert task.loss_weight([*task.group({"photo": "a.png"}), 5.0, 6.0]) == 2
    assert task.group({"photo": "a.png"}) == task.group({"photo": "a.png"}) != task.group({"photo": "b.png"})


def test_transcribed_clips_have_the_window_of_whisper_unless_they_set_another(folder: Path) -> None:
    (folder / "whisper").mkdir(exist_ok=True)
    encoder = {"type": "huggingface", "model": str(folder / "whisper"), "pool": "none"}
    clip = {"type": "audio", "encoder": encoder}
    inputs = {"audio": clip, "other": {"type": "audio"}}
    job = tiny_generation.speech_job(folder, inputs=inputs)
    assert [options.max_seconds for options in job.inputs.values()] == [30, 10]
    job = tiny_generation.speech_job(folder, inputs={"audio": {**clip, "max_seconds": 8}})
    assert job.inputs["audio"].max_seconds == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"tasks.answer.prompt": "{text}"},
            r"tasks\.answer\.prompt: does not name `image`, which reads names",
        ),
        ({"tasks.answer.language": "de"}, r"tasks\.answer\.language: .*without an audio input in reads"),
        ({"tasks.answer.reads": "text"}, r"tasks\.answer\.reads: `text` is an input of type text"),
        (
            {"inputs.image.encoder.pool": "mean"},
            r"tasks\.answer\.reads: .*set inputs\.image\.encoder to .*pool: none",
        ),
    ],
)
def test_invalid_vision_tasks(overrides: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "llava").mkdir(exist_ok=True)
    encoder = {"type": "huggingface", "model": str(folder / "llava"), "pool": "none"}
    image = {"type": "image", "size": 8, "encoder": encoder}
    task = {"model": str(folder / "llava"), "reads": "image"}
    with pytest.raises(SpecError, match=message):
        tiny_generation.generation_job(folder, "smollm", task, **{"inputs.image": image, **overrides})


@pytest.mark.parametrize("key", ["column", "reads"])
def test_names_that_are_no_texts(key: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=rf"tasks\.answer\.{key}: must be a string"):
        tiny_generation.generation_job(folder, **{f"tasks.answer.{key}": []})
