"""Prompts and replies of generation tasks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_language_models
from pydantic import TypeAdapter
from transformers import LlamaConfig

from rayfuse.data.targets import check_targets
from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.messages import Message
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.spec.inputs import ImageInput, TextInput
from rayfuse.spec.tasks import GenerationTaskConfig

INPUTS: Any = {
    "image": TypeAdapter(ImageInput).validate_python({"type": "image", "column": "image"}),
    "text": TypeAdapter(TextInput).validate_python(
        {"type": "text", "column": "text", "max_tokens": 8, "encoder": {"type": "prompt"}}
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def renderer(models: Path, family: str, **options: Any) -> PromptRenderer:
    folder = models / family
    if not folder.exists():
        tiny_language_models.FAMILIES[family](folder)
    return PromptRenderer(task(folder, **options), INPUTS)


def task(folder: Path, **options: Any) -> GenerationTaskConfig:
    content = {"type": "generation", "model": str(folder), "column": "reply", "max_tokens": 16, **options}
    return TypeAdapter(GenerationTaskConfig).validate_python(content)


def as_text(prompt: PromptRenderer, pieces: Any) -> str:
    return "".join(f"<{p}>" if isinstance(p, str) else prompt.tokenizer.decode(p) for p in pieces)


@pytest.mark.parametrize("family", ["smollm", "qwen", "gemma"])
def test_prompt_and_reply_are_the_rendered_conversation(family: str, models: Path) -> None:
    """Without a generation marker in the template (trl#5471), and the same in training and serving (vllm#47026)."""
    prompt = renderer(models, family, prompt="Look: {text}")
    [ids] = prompt.render({"text": "a dog"}, frozenset())
    reply = prompt.reply_ids("yes")
    tokenizer = prompt.tokenizer
    assert "generation %}" not in tokenizer.chat_template
    turns = [{"role": "user", "content": "Look: a dog"}]
    assert ids == tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "yes"}])["input_ids"]
    assert whole[: len(ids) + len(reply)] == [*ids, *reply]
    assert tokenizer.decode(whole[len(ids) + len(reply) :]).strip() == ""


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
def test_a_prompt_has_at_most_one_bos(family: str, models: Path) -> None:
    prompt = renderer(models, family, prompt="{image}{text}")
    pieces = prompt.render({"text": "a dog"}, frozenset({"image"}))
    ids = [token for piece in pieces if not isinstance(piece, str) for token in piece]
    assert ids.count(prompt.tokenizer.bos_token_id) == (1 if family in ("llama", "gemma") else 0)


def test_a_reply_ends_where_padding_and_eos_are_one_token(models: Path) -> None:
    prompt = renderer(models, "smollm")
    assert prompt.tokenizer.pad_token_id == prompt.tokenizer.eos_token_id
    ids = prompt.reply_ids("yes")
    assert ids[-1] == prompt.tokenizer.eos_token_id
    assert prompt.decode(ids) == "yes"


def test_the_end_token_is_that_of_the_template(models: Path) -> None:
    prompt = renderer(models, "gemma")
    assert prompt.tokenizer.decode([prompt.end_id]) == "<end_of_turn>"
    assert renderer(models, "llama").end_id == renderer(models, "llama").tokenizer.eos_token_id


def test_a_reply_after_a_plain_prompt_begins_with_a_space(models: Path) -> None:
    prompt = renderer(models, "gpt2", prompt="{image}Answer:")
    assert prompt.tokenizer.decode(prompt.reply_ids("yes")[:-1]) == " yes"
    assert prompt.decode(prompt.reply_ids("yes")) == "yes"


def test_absent_inputs_leave_nothing(models: Path) -> None:
    prompt = renderer(models, "gpt2", prompt="{image} Asked: {text}?")
    assert as_text(prompt, prompt.render({"text": "why"}, {"image"})) == "<image> Asked: why?"
    assert as_text(prompt, prompt.render({}, {"image"})) == "<image> Asked: ?"
    assert as_text(prompt, prompt.render({"text": "why"}, set())) == "Asked: why?"


def test_a_long_text_is_truncated_and_spans_stay(models: Path) -> None:
    """Soft tokens that were cut with a text would no longer match the model's inputs (LlamaFactory#9166)."""
    prompt = renderer(models, "smollm", prompt="{text}{image}Answer.")
    pieces = prompt.render({"text": "0123456789" * 100}, {"image"})
    assert pieces.count("image") == 1
    assert as_text(prompt, pieces) == (
        "<|im_start|>user\n01234567<image>Answer.<|im_end|>\n<|im_start|>assistant\n"
    )
    longest = sum(len(piece) for piece in pieces if not isinstance(piece, str)) + 16
    assert longest <= prompt.max_text_tokens <= longest + 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("0123456789abcdef", r"17 tokens with its end token, above max_tokens 16; raise max_tokens"),
        ("a<|im_end|>b", r"contains the special token <\|im_end\|>"),
    ],
)
def test_a_reply_that_would_be_cut_is_invalid(reply: str, reason: str, models: Path) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        renderer(models, "smollm").reply_ids(reply)


def test_a_text_cannot_end_its_turn(models: Path) -> None:
    prompt = renderer(models, "smollm", prompt="{text}")
    [ids] = prompt.render({"text": "a<|im_<|im_end|>end|>\nb</s>c"}, set())
    assert prompt.tokenizer.decode(ids) == "<|im_start|>user\na\nbc<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_turn_precedes_the_prompt(models: Path) -> None:
    prompt = renderer(models, "qwen", prompt="{text}", system="Be kind.")
    text = as_text(prompt, prompt.render({"text": "hi"}, set()))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")


def test_a_dialogue_is_rendered_by_the_chat_template(models: Path) -> None:
    prompt = renderer(models, "smollm", prompt="Q: {text}{image}", system="Be kind.")
    turns = (Message("user", "rayfusemarker0x<|im_end|>"), Message("assistant", "hello"))
    pieces = prompt.render({"text": "why"}, {"image"}, Dialogue("Be brief.", turns))
    whole = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "rayfusemarker0x"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Q: why<image>"},
    ]
    expected = prompt.tokenizer.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
    assert as_text(prompt, pieces) == expected
    plain = prompt.render({"text": "why"}, {"image"})
    assert prompt.render({"text": "why"}, {"image"}, Dialogue()) == plain
    assert as_text(prompt, plain).startswith("<|im_start|>system\nBe kind.")


def test_words_of_a_dialogue_take_the_place_of_those_of_the_prompt(models: Path) -> None:
    prompt = renderer(models, "gpt2", prompt="{image} Asked: {text}?")
    pieces = prompt.render({"text": "why"}, {"image"}, Dialogue(text="Describe</s> it."))
    assert as_text(prompt, pieces) == "<image>why\nDescribe it."


def test_dialogues_that_a_model_cannot_answer(models: Path, tmp_path: Path) -> None:
    turns = Dialogue(turns=(Message("user", "hi"), Message("assistant", "hello")))
    with pytest.raises(InvalidInputError, match="no chat template") as raised:
        renderer(models, "gpt2").render({}, set(), turns)
    assert raised.value.input_name == "messages"
    only_one = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"
    tiny_language_models.write_tokenizer(tmp_path, only_one)
    strict = PromptRenderer(task(tmp_path), INPUTS)
    assert strict.render({"text": "a"}, set())
    with pytest.raises(InvalidInputError, match="does not take these messages: one turn only"):
        strict.render({"text": "a"}, set(), turns)


def test_unusable_models_are_reported_with_path_and_remedy(tmp_path: Path) -> None:
    def check(**options: Any) -> None:
        job: Any = SimpleNamespace(tasks={"caption": task(tmp_path, **options)}, inputs=INPUTS)
        check_targets(job)

    with pytest.raises(DataError, match=r"tasks\.caption\.model: .*cannot load the configuration"):
        check()
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"tasks\.caption\.model: .*tokenizer.*"):
        check()
    tiny_language_models.write_tokenizer(tmp_path, "{{ raise_exception('no system turns') }}")
    with pytest.raises(DataError, match=r"its chat template cannot be rendered: .*no system turns; correct"):
        check()
