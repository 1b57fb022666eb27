"""Export of trained pretrained models to folders that PEFT and transformers load."""

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from rayfuse.errors import SpecError
from rayfuse.modalities.pretrained import SAFE_SUFFIXES, download_model
from rayfuse.model.encoder_decoder import SpeechDecoder
from rayfuse.model.encoders.adapters import needs_own_base_weights
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder, load_checkpoint, load_pretrained
from rayfuse.model.language_model import LanguageModel, VisionLanguageModel
from rayfuse.spec.encoders import LoraAdapterConfig

_WEIGHT_FILES = (".safetensors", ".safetensors.index.json")


def export_adapter(encoder: HuggingFaceEncoder | LanguageModel, folder: Path) -> None:
    """Write the adapter of a pretrained model as a PEFT folder, for `PeftModel.from_pretrained`.

    Raises SpecError if the model has none, or one that only works with frozen weights that it changed.
    """
    options = encoder.options
    if options.adapter is None:
        raise SpecError(f"train: {options.train}: there is no adapter to export; use --merged")
    if isinstance(options.adapter, LoraAdapterConfig) and needs_own_base_weights(options.adapter):
        raise SpecError(
            f"lora.init_lora_weights: {options.adapter.init_lora_weights} also changes the frozen weights, so the adapter "
            "does not work with the original model; use --merged"
        )
    encoder.model.save_pretrained(str(folder))


def export_merged(encoder: HuggingFaceEncoder, folder: Path) -> None:
    """Write the pretrained model of an encoder with its trained weights and merged adapters, for `AutoModel`.

    Parts of the model that the encoder does not use, such as a decoder, are the original ones. The folder also has the
    tokenizer or processor.
    """
    whole, part = load_pretrained(encoder.options.model, encoder.input_type)
    _copy_weights(_merged(encoder), part)
    whole.save_pretrained(str(folder))
    copy_preprocessing_files(encoder.options.model, folder)


def export_language_model(language_model: LanguageModel, folder: Path) -> None:
    """Write a language model with its trained weights and merged adapters, for its class of transformers.

    The folder also has the tokenizer, and the original's own settings for generation.
    """
    _save_language_model(_merged(language_model), language_model.options.model, folder)


def export_with_encoder(
    language_model: SpeechDecoder | VisionLanguageModel, encoder: HuggingFaceEncoder, folder: Path
) -> None:
    """Write the encoder of an input and the language model that reads it as one model, as `export_language_model`."""
    original = language_model.options.model
    whole, _ = load_checkpoint(original, for_training=False, auto_class=language_model.auto_class)
    _copy_weights(_merged(language_model), whole)
    _copy_weights(_merged(encoder), language_model.encoder_of(whole))
    _save_language_model(whole, original, folder)


def _merged(module: HuggingFaceEncoder | LanguageModel) -> Any:
    """Return a copy of a trained model with its adapters merged."""
    trained = copy.deepcopy(module.model)
    return trained.merge_and_unload() if module.options.adapter is not None else trained


def _save_language_model(model: Any, original: str, folder: Path) -> None:
    model.config.use_cache = True
    model.save_pretrained(str(folder))
    (folder / "generation_config.json").unlink(missing_ok=True)
    copy_preprocessing_files(original, folder)


def copy_preprocessing_files(model: str, folder: Path) -> None:
    """Copy the files of a pretrained model but its weights and configuration, such as its tokenizer, to a folder."""
    for path in download_model(model).iterdir():
        is_other = path.name != "config.json" and not path.name.endswith(_WEIGHT_FILES)
        if path.suffix in SAFE_SUFFIXES and is_other and not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)


def _copy_weights(trained: nn.Module, target: nn.Module) -> None:
    """Copy all weights, except tables of positions that the encoder truncated without training them."""
    state: dict[str, Any] = trained.state_dict()
    shapes = {name: tensor.shape for name, tensor in target.state_dict().items()}
    target.load_state_dict(
        {name: tensor for name, tensor in state.items() if shapes.get(name) == tensor.shape}, strict=False
    )
