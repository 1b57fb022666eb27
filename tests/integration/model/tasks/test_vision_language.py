"""Generation tasks over an image that a vision–language model reads with its own image part."""

from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_language_models
import tiny_vision_language_models
import torch
import transformers
from PIL import Image
from tiny_vision_language_models import FAMILIES
from transformers import AutoModelForImageTextToText, AutoTokenizer
from variants import train_and_reload

import rayfuse
from rayfuse.data.collate import Batch
from rayfuse.data.dataset import load_dataset
from rayfuse.data.targets import check_targets
from rayfuse.errors import DataError
from rayfuse.modalities import build_modality
from rayfuse.modalities.pretrained import load_image_processor
from rayfuse.model.fused import FusedModel, task_heads
from rayfuse.training.context_check import check_context_lengths

SPAN = {
    "llava": "<image>",
    "llava_siglip": "<image>",
    "idefics3": "<fake_token_around_image><global-img><image><fake_token_around_image>",
    "smolvlm": "<fake_token_around_image><global-img><image><fake_token_around_image>",
    "internvl": "<img><image></img>",
    "aya_vision": "<|START_OF_IMG|>TILE_GLOBAL<|IMG_PATCH|><|END_OF_IMG|>",
    "deepseek_vl": "<image>",
}
"""An image in a prompt, as the processor of the model writes it, with one token for all tokens of the image."""


def build(
    folder: Path, family: str, task: dict[str, Any] | None = None, **options: Any
) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(
        tiny_vision_language_models.vision_job(folder, family, task, **options)
    )
    torch.manual_seed(0)
    return job, FusedModel(job).eval(), batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    tiny_generation.make_rows(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_tokens_are_those_of_the_whole_model(family: str, folder: Path) -> None:
    """Of each row alone, with the image part and the language model in one, and the prompt of its processor."""
    _, model, batch = build(folder, family)
    whole = AutoModelForImageTextToText.from_pretrained(folder / family).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / family)
    several = family in ("idefics3", "smolvlm")
    pixels, index = batch.inputs["image"].features["pixel_values"], batch.inputs["image"].index[:, 0].tolist()
    text, texts = batch.inputs["text"], []
    for place in text.index[:, 0].tolist():
        content = text.features["utf8"][place].numpy()
        texts.append(bytes(content[content >= 0].astype("uint8")).decode() if place >= 0 else "")
    replies = set()
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        generated = model(batch, generate=True).tasks["answer"]
        for row, place in enumerate(index):
            found = generated[row][~generated[row].isnan()].long().tolist()
            target = batch.targets["answer"][row]
            reply = target[~target.isnan()].long()
            span = _span(family) if place >= 0 else ""
            prompt = (
                f"<|im_start|>user\n{span}Asked: {texts[row]}".rstrip()
                + "<|im_end|>\n<|im_start|>assistant\n"
            )
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            image = pixels[place : place + 1] if place >= 0 else None
            inputs = {} if image is None else {"pixel_values": image.unsqueeze(1) if several else image}
            both = torch.cat([ids, reply[None, :-1]], dim=1)
            logits = whole(input_ids=both, **inputs).logits[0, ids.shape[1] - 1 :]
            wanted = torch.nn.functional.cross_entropy(logits, reply, reduction="sum")
            torch.testing.assert_close(outputs[row, 0], wanted, rtol=1e-4, atol=1e-3)
            tokens = whole.generate(
                input_ids=ids,
                **inputs,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=259,
                pad_token_id=259,
            )[0, ids.shape[1] :].tolist()
            assert tokens[: len(found)] == found
            assert set(tokens[len(found) :]) <= {259}
            replies.add(tuple(found))
    assert len(replies) > 1


def _span(family: str) -> str:
    repeated = "<|IMG_PATCH|>" if family == "aya_vision" else "<image>"
    return SPAN[family].replace(repeated, repeated * FAMILIES[family].num_tokens)


@pytest.mark.parametrize(
    ("family", "processor", "settings"),
    [
        (
            "llava",
            "LlavaProcessor",
            {
                "patch_size": 8,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        ),
        ("idefics3", "Idefics3Processor", {"image_seq_len": 4}),
        ("aya_vision", "AyaVisionProcessor", {"patch_size": 8, "img_size": 32, "downsample_factor": 2}),
        ("deepseek_vl", "DeepseekVLProcessor", {"num_image_tokens": 16}),
    ],
)
def test_pixels_and_tokens_are_those_of_the_processor(
    family: str, processor: str, settings: dict[str, Any], folder: Path
) -> None:
    job, model, _ = build(folder, family)
    tokenizer = AutoTokenizer.from_pretrained(folder / family)
    tokenizer.image_token, tokenizer.image_token_id = "<image>", 262
    images = load_image_processor(str(folder / family))
    whole = getattr(transformers, processor)(image_processor=images, tokenizer=tokenizer, **settings)
    image = Image.effect_noise((60, 40), 50).convert("RGB")
    tiles = {"crop_to_patches": False} if family == "aya_vision" else {}
    found = whole(text=["<image>Asked:"], images=[image], return_tensors="pt", **tiles)
    head: Any = task_heads(model)["answer"]
    before, name, after = head.renderer.render({}, {"image"})
    assert name == "image"
    mine = [*before, *[270 if family == "aya_vision" else 262] * FAMILIES[family].num_tokens, *after]
    wanted = found["input_ids"][0].tolist()
    assert wanted in [mine[start : start + len(wanted)] for start in range(len(mine))]
    pixels = build_modality(job.inputs["image"]).process(image)["pixel_values"]
    torch.testing.assert_close(torch.from_numpy(pixels), found["pixel_values"].reshape(pixels.shape))


@pytest.mark.parametrize("family", ["llava", "smolvlm", "aya_vision"])
def test_images_in_messages_stay_in_their_places(family: str, tmp_path: Path) -> None:
    """Losses are those of the whole model on the dialogue as chat template and processor render it."""
    tiny_generation.make_dialogues_with_images(tmp_path)
    job, batch = tiny_generation.load_batch(tiny_vision_language_models.dialogue_job(tmp_path, family))
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / family).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / family)
    several = family == "smolvlm"
    image = batch.inputs["image"]
    rows = [row.values for row in load_dataset(job)[1].splits["train"]]
    with torch.no_grad():
        outputs = model(batch).tasks["reply"]
        for row, (index, content) in enumerate(zip(image.index.tolist(), rows, strict=True)):
            *messages, last = content["messages"]
            parts = [{**one, "content": _template_parts(one["content"])} for one in messages]
            text = tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
            prompt = text.replace("<image>", _span(family))
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            reply = tokenizer(f"{last['content']}<|im_end|>", return_tensors="pt")["input_ids"][0]
            places = [place for place in index if place >= 0]
            assert len(places) == text.count("<image>")
            pixels = image.features["pixel_values"][places]
            inputs = {"pixel_values": pixels[None] if several else pixels} if places else {}
            both = torch.cat([ids, reply[None, :-1]], dim=1)
            logits = whole(input_ids=both, **inputs).logits[0, ids.shape[1] - 1 :]
            wanted = torch.nn.functional.cross_entropy(logits, reply, reduction="sum")
            torch.testing.assert_close(outputs[row, 0], wanted, rtol=1e-4, atol=1e-3)
    assert {sum(place >= 0 for place in index) for index in image.index.tolist()} == {0, 3}


def _template_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of a message as the chat template takes them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part if part["type"] == "text" else {"type": "image"} for part in content]


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("family", ["llava", "llava_siglip", "idefics3", "internvl", "aya_vision"])
def test_all_trained_weights_get_a_gradient(family: str, train: str, folder: Path) -> None:
    """Those that cannot, such as the layers behind the one that is read, would block other ranks."""
    _, model, batch = build(folder, family, {"train": train}, train=train)
    losses = model.train().losses(model(batch), batch)  # type: ignore[arg-type]
    model.total_loss(losses, batch).backward()
    without = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []


def test_a_trained_model_is_loaded_and_exported_in_one_piece(tmp_path: Path) -> None:
    tiny_generation.make_rows(tmp_path)
    job = tiny_vision_language_models.vision_job(tmp_path, "llava", {"train": "full"}, train="full")
    model, batch = train_and_reload(tmp_path, job)
    result = rayfuse.export(tmp_path / "model", tmp_path / "merged")
    assert list(result.folders) == ["image", "tasks/answer"]
    again = {"model": str(result.folders["tasks/answer"])}
    rebuilt = tiny_vision_language_models.vision_job(
        tmp_path, "llava", again, **{"inputs.image.encoder.model": again["model"]}
    )
    _, same = tiny_generation.load_batch(rebuilt)
    fresh = FusedModel(tiny_generation.load_batch(rebuilt)[0]).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            fresh(same).tasks["answer"], model(batch).tasks["answer"], rtol=1e-4, atol=1e-3
        )
    original = {path.name for path in (tmp_path / "llava").iterdir()}
    assert original <= {path.name for path in result.folders["tasks/answer"].iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks.answer.model": "idefics3"},
            "is not the image part of this model; use the same model in both",
        ),
        ({"tasks.answer.model": "whisper"}, "this model reads audio, and `image` is an input of type image"),
        ({"tasks.answer.model": "smollm"}, "a llama model cannot be used with reads; use a Whisper model"),
    ],
)
def test_models_that_do_not_fit_the_image(changes: dict[str, str], message: str, folder: Path) -> None:
    [name] = changes.values()
    if not (folder / name).exists():
        writer = tiny_language_models.ALL.get(name)
        writer(folder / name) if writer else tiny_vision_language_models.write(folder / name, name)
    job = tiny_vision_language_models.vision_job(folder, "llava", {"model": str(folder / name)})
    with pytest.raises(DataError, match=message):
        check_targets(job)


def test_the_tokens_of_all_images_of_a_dialogue_count_for_the_context(tmp_path: Path) -> None:
    tiny_generation.make_dialogues_with_images(tmp_path)
    job, _ = tiny_generation.load_batch(tiny_vision_language_models.dialogue_job(tmp_path, "llava"))
    changed = job.model_copy(
        update={"inputs": job.inputs | {"image": job.inputs["image"].model_copy(update={"max_items": 8})}}
    )
    with pytest.raises(
        DataError, match=r"tasks\.reply: prompt, soft tokens and reply take up to 3\d\d tokens"
    ):
        check_context_lengths(changed, FusedModel(changed))


def test_the_tokens_of_an_image_count_for_the_context(folder: Path) -> None:
    job, model, _ = build(folder, "llava", {"max_tokens": 160})
    with pytest.raises(
        DataError, match=r"tasks\.answer: prompt, soft tokens and reply take up to 2\d\d tokens, above"
    ):
        check_context_lengths(job, model)
