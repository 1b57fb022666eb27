"""Write tiny vision–language models with random weights, their tokenizers and image processors in Hugging Face layout."""

from pathlib import Path
from typing import Any, NamedTuple

import tiny_generation
import tiny_language_models

IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<img>", "</img>", "TILE_GLOBAL")
IMAGE_TOKENS += ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")
PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Turns of which each content is a list of parts, as in SmolVLM's template."""

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 259,
    "pad_token_id": 257,
}
_SQUARE = {"size": {"height": 32, "width": 32}}
_LONGEST = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


class Family(NamedTuple):
    """The parts of a model, and its image processor."""

    vision: str
    text: str
    settings: dict[str, Any]
    processor: str
    processor_settings: dict[str, Any]
    num_tokens: int
    """Tokens of an image."""
    template: str = PARTS


FAMILIES = {
    "llava": Family(
        "clip_vision_model",
        "llama",
        {"image_token_index": 262},
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": 32},
        16,
    ),
    "llava_siglip": Family(
        "siglip_vision_model",
        "qwen2",
        {
            "image_token_index": 262,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -2,
        },
        "SiglipImageProcessorPil",
        _SQUARE,
        16,
    ),
    "idefics3": Family(
        "idefics3_vision",
        "llama",
        {"image_token_id": 262, "scale_factor": 2},
        "Idefics3ImageProcessorPil",
        _LONGEST,
        4,
    ),
    "smolvlm": Family(
        "smolvlm_vision",
        "llama",
        {"image_token_id": 262, "scale_factor": 2},
        "SmolVLMImageProcessorPil",
        _LONGEST,
        4,
    ),
    "internvl": Family(
        "internvl_vision",
        "qwen2",
        {"image_token_id": 262, "downsample_ratio": 0.5},
        "GotOcr2ImageProcessorPil",
        _SQUARE,
        4,
        tiny_language_models.CHATML,
    ),
    "aya_vision": Family(
        "siglip_vision_model",
        "cohere2",
        {
            "image_token_index": 270,
            "downsample_factor": 2,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
        "GotOcr2ImageProcessorPil",
        _SQUARE,
        4,
    ),
    "deepseek_vl": Family(
        "siglip_vision_model",
        "llama",
        {"image_token_id": 262},
        "DeepseekVLImageProcessorPil",
        _SQUARE,
        16,
    ),
}


def write(folder: Path, name: str) -> Path:
    """Write a model of a family, whose replies depend on the image and on the prompt."""
    import torch
    import transformers

    family = FAMILIES[name]
    vocabulary = tiny_language_models.write_tokenizer(
        folder, family.template, eos="<|im_end|>", pad="</s>", more_tokens=IMAGE_TOKENS
    )
    vision: dict[str, Any] = {**_VISION, "model_type": family.vision}
    if family.vision == "internvl_vision":
        vision |= {"image_size": [32, 32], "patch_size": [8, 8]}
    if name == "deepseek_vl":
        vision |= {"vision_use_head": False}
    config = transformers.AutoConfig.for_model(
        name.removesuffix("_siglip"),
        text_config={**_TEXT, "model_type": family.text, "vocab_size": vocabulary},
        vision_config=vision,
        **family.settings,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    getattr(transformers, family.processor)(**family.processor_settings).save_pretrained(folder)
    return folder


def vision_job(
    folder: Path, family: str, task: dict[str, Any] | None = None, train: str = "lora", **changes: Any
) -> Any:
    """Return a job over an optional image, which a model of a family reads, and an optional text."""
    model = folder / family
    if not model.exists():
        write(model, family)
    encoder = {"type": "huggingface", "model": str(model), "train": train, "pool": "none"}
    options = {"model": str(model), "reads": "image", "prompt": "{image}Asked: {text}", **(task or {})}
    return tiny_generation.generation_job(
        folder,
        "smollm",
        options,
        **{
            "inputs.image": {"type": "image", "size": 8, "encoder": encoder, "optional": True},
            "inputs.text.max_tokens": 64,
            **changes,
        },
    )


def dialogue_job(folder: Path, family: str, **changes: Any) -> Any:
    """Return a job over dialogues, whose images a model of a family reads in their places."""
    model = folder / family
    if not model.exists():
        write(model, family)
    encoder = {"type": "huggingface", "model": str(model), "train": "lora", "pool": "none"}
    inputs = tiny_generation.inputs_with_parts()
    inputs["messages"] |= {"max_tokens": 180}
    inputs["image"] |= {"encoder": encoder}
    task = {"reads": "image", "prompt": None, "metrics": ["exact"]}
    return tiny_generation.dialogue_job(folder, family, task, inputs=inputs, **changes)
