"""Vision–language models of transformers whose images are a span of tokens in a causal language model's prompt."""

from typing import Any

from rayfuse.modalities.prompt_pieces import SpanFrame

IMAGE_FRAMES = {
    "aya_vision": SpanFrame("<|START_OF_IMG|>TILE_GLOBAL", "<|END_OF_IMG|>"),
    "deepseek_vl": SpanFrame(),
    "idefics3": SpanFrame("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "internvl": SpanFrame("<img>", "</img>"),
    "llava": SpanFrame(),
    "smolvlm": SpanFrame("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
}
"""Model types that can be used, of which an image is one tile, with the tokens around it.

Others read tiles of different shapes (LLaVA-NeXT, Qwen-VL, Pixtral), or attend in both directions within an image
(Gemma 3, PaliGemma).
"""

_TILING = ("do_image_splitting", "crop_to_patches")
"""Settings of image processors with which an image is cut into tiles next to the whole."""


def is_vision_language_model(config: Any) -> bool:
    """Return whether a model's configuration is that of a vision–language model that can be used."""
    return config.model_type in IMAGE_FRAMES


def disable_tiling(processor: Any) -> Any:
    """Make an image processor return one tile per image, whatever the size of the image; returns the processor."""
    for name in _TILING:
        if hasattr(processor, name):
            setattr(processor, name, False)
    return processor
