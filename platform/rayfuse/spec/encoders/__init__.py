"""Encoders: networks trained from scratch and pretrained ones, by type of input."""

from collections.abc import Iterator
from typing import Annotated, Any

from rayfuse.spec.encoders.adapters import IA3AdapterConfig, LoraAdapterConfig, OFTAdapterConfig
from rayfuse.spec.encoders.base import BaseEncoderConfig, CustomEncoderConfig, LayeredEncoderConfig, Pool
from rayfuse.spec.encoders.huggingface import HuggingFaceEncoderConfig
from rayfuse.spec.encoders.image import ConvEncoderConfig, PatchTransformerEncoderConfig, ResnetEncoderConfig
from rayfuse.spec.encoders.pretrained import PretrainedModelConfig
from rayfuse.spec.encoders.prompt import PromptEncoderConfig
from rayfuse.spec.encoders.sequence import (
    EmbeddingEncoderConfig,
    GRUEncoderConfig,
    LSTMEncoderConfig,
    MelGRUEncoderConfig,
    MelLSTMEncoderConfig,
    MelTransformerEncoderConfig,
    TimeseriesConvEncoderConfig,
    TimeseriesGRUEncoderConfig,
    TimeseriesLSTMEncoderConfig,
    TimeseriesTransformerEncoderConfig,
    TransformerEncoderConfig,
)
from rayfuse.spec.encoders.tabular import MLPEncoderConfig
from rayfuse.spec.encoders.text import NGramsEncoderConfig
from rayfuse.spec.encoders.video import FramesEncoderConfig
from rayfuse.spec.family import Family, PartOf, families_by_input_type

_ENCODERS = "rayfuse.model.encoders"

ENCODERS: dict[str, Family[BaseEncoderConfig]] = families_by_input_type(
    "encoder",
    {
        "image": {
            ConvEncoderConfig: f"{_ENCODERS}.conv_image:ConvImageEncoder",
            ResnetEncoderConfig: f"{_ENCODERS}.resnet_image:ResnetImageEncoder",
            PatchTransformerEncoderConfig: f"{_ENCODERS}.transformer_image:PatchTransformerImageEncoder",
            HuggingFaceEncoderConfig: f"{_ENCODERS}.huggingface:HuggingFaceEncoder",
        },
        "audio": {
            ConvEncoderConfig: f"{_ENCODERS}.conv_audio:ConvAudioEncoder",
            ResnetEncoderConfig: f"{_ENCODERS}.resnet_audio:ResnetAudioEncoder",
            MelGRUEncoderConfig: f"{_ENCODERS}.sequence_audio:SequenceAudioEncoder",
            MelLSTMEncoderConfig: f"{_ENCODERS}.sequence_audio:SequenceAudioEncoder",
            MelTransformerEncoderConfig: f"{_ENCODERS}.sequence_audio:SequenceAudioEncoder",
            HuggingFaceEncoderConfig: f"{_ENCODERS}.huggingface:HuggingFaceEncoder",
        },
        "video": {
            FramesEncoderConfig: f"{_ENCODERS}.frames_video:FramesVideoEncoder",
        },
        "text": {
            ConvEncoderConfig: f"{_ENCODERS}.conv_text:ConvTextEncoder",
            NGramsEncoderConfig: f"{_ENCODERS}.ngrams_text:NGramsTextEncoder",
            GRUEncoderConfig: f"{_ENCODERS}.sequence_text:SequenceTextEncoder",
            LSTMEncoderConfig: f"{_ENCODERS}.sequence_text:SequenceTextEncoder",
            TransformerEncoderConfig: f"{_ENCODERS}.sequence_text:SequenceTextEncoder",
            HuggingFaceEncoderConfig: f"{_ENCODERS}.huggingface:HuggingFaceEncoder",
            PromptEncoderConfig: f"{_ENCODERS}.prompt_text:PromptTextEncoder",
        },
        "chat": {
            PromptEncoderConfig: f"{_ENCODERS}.prompt_text:PromptTextEncoder",
        },
        "timeseries": {
            TimeseriesConvEncoderConfig: f"{_ENCODERS}.sequence_timeseries:SequenceTimeseriesEncoder",
            TimeseriesGRUEncoderConfig: f"{_ENCODERS}.sequence_timeseries:SequenceTimeseriesEncoder",
            TimeseriesLSTMEncoderConfig: f"{_ENCODERS}.sequence_timeseries:SequenceTimeseriesEncoder",
            TimeseriesTransformerEncoderConfig: f"{_ENCODERS}.sequence_timeseries:SequenceTimeseriesEncoder",
        },
        "tabular": {
            MLPEncoderConfig: f"{_ENCODERS}.mlp_tabular:MLPTabularEncoder",
        },
        "item_sequence": {
            EmbeddingEncoderConfig: f"{_ENCODERS}.embedding_item_sequence:EmbeddingItemSequenceEncoder",
            GRUEncoderConfig: f"{_ENCODERS}.sequence_item:SequenceItemEncoder",
            TransformerEncoderConfig: f"{_ENCODERS}.sequence_item:SequenceItemEncoder",
        },
        "custom": {},
    },
    custom=CustomEncoderConfig,
)
"""The built-in encoders of each type of input; those of `custom`, none, are for custom inputs."""

ImageEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["image"])]
"""Any encoder of images."""
AudioEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["audio"])]
"""Any encoder of audio."""
VideoEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["video"])]
"""Any encoder of videos."""
TextEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["text"])]
"""Any encoder of text."""
ChatEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["chat"])]
"""Any encoder of dialogues."""
TimeseriesEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["timeseries"])]
"""Any encoder of time series."""
TabularEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["tabular"])]
"""Any encoder of tabular inputs."""
ItemSequenceEncoderConfig = Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["item_sequence"])]
"""Any encoder of item sequences."""


def iter_encoders(encoder: BaseEncoderConfig) -> Iterator[tuple[tuple[str, ...], BaseEncoderConfig]]:
    """Yield an encoder and those inside it, outer ones first, each with its path below the outermost."""
    yield (), encoder
    for field, inner in encoder.inner_encoders.items():
        yield from (((field, *path), part) for path, part in iter_encoders(inner))


def iter_pretrained_encoders(encoder: Any) -> Iterator[tuple[tuple[str, ...], HuggingFaceEncoderConfig]]:
    """Yield the pretrained encoders of an encoder, itself or inside it, each with its path."""
    return (
        (path, part) for path, part in iter_encoders(encoder) if isinstance(part, HuggingFaceEncoderConfig)
    )


__all__ = [
    "ENCODERS",
    "AudioEncoderConfig",
    "BaseEncoderConfig",
    "ChatEncoderConfig",
    "ConvEncoderConfig",
    "CustomEncoderConfig",
    "EmbeddingEncoderConfig",
    "FramesEncoderConfig",
    "GRUEncoderConfig",
    "HuggingFaceEncoderConfig",
    "IA3AdapterConfig",
    "ImageEncoderConfig",
    "ItemSequenceEncoderConfig",
    "LSTMEncoderConfig",
    "LayeredEncoderConfig",
    "LoraAdapterConfig",
    "MLPEncoderConfig",
    "NGramsEncoderConfig",
    "OFTAdapterConfig",
    "PatchTransformerEncoderConfig",
    "Pool",
    "PretrainedModelConfig",
    "PromptEncoderConfig",
    "ResnetEncoderConfig",
    "TabularEncoderConfig",
    "TextEncoderConfig",
    "TimeseriesConvEncoderConfig",
    "TimeseriesEncoderConfig",
    "TransformerEncoderConfig",
    "VideoEncoderConfig",
    "iter_encoders",
    "iter_pretrained_encoders",
]
