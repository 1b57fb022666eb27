"""The image part of vision–language models: their vision tower, and the projector to the language model's width."""

from typing import Any

import torch

from rayfuse.model.encoders.layer_depth import largest_module_list

_LANGUAGE_PARTS = ("language_model", "text_model")
_IMAGE_PARTS = ("vision_tower", "vision_model", "multi_modal_projector", "connector", "aligner")
_INNER_LAYER = ("aya_vision", "llava")
"""Model types whose projector reads a hidden state of an inner layer of the vision tower."""


def keep_image_part(model: Any) -> Any:
    """Remove the language model, and the parts of the vision tower whose outputs are not used; returns the model."""
    _remove(model, _LANGUAGE_PARTS)
    model.main_input_name = "pixel_values"
    tower: Any = getattr(model, "vision_tower", None)
    if getattr(tower, "use_head", False):  # SigLIP's pooling
        tower.use_head, tower.head = False, None
    layer = getattr(model.config, "vision_feature_layer", -1)
    stack = largest_module_list(model)
    if model.config.model_type in _INNER_LAYER and layer != -1 and stack is not None:
        layers = stack[1]
        kept = layer if layer >= 0 else len(layers) + 1 + layer
        del layers[kept:]
        model.config.vision_feature_layer = tower.config.num_hidden_layers = kept
    if model.config.model_type in _INNER_LAYER and hasattr(tower, "post_layernorm"):
        tower.post_layernorm.requires_grad_(False)  # behind the layer that is read
    return model


def keep_language_part(model: Any) -> Any:
    """Remove the vision tower and the projector of a model with a language model's head; returns the model."""
    _remove(model.model, _IMAGE_PARTS)
    return model


def image_tokens(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the tokens of images, float (rows, tokens, width of the language model).

    pixel_values: float (rows, 3, height, width).
    """
    if hasattr(model, "connector"):  # Idefics 3, whose `get_image_features` leaves out images that are 0
        states = model.vision_model(pixel_values=pixel_values).last_hidden_state
        found: torch.Tensor = model.connector(states)
        return found
    found = torch.stack(list(model.get_image_features(pixel_values).pooler_output))
    return found.reshape(len(pixel_values), -1, found.shape[-1])


def _remove(model: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
