"""Inputs: the modalities of a model, their columns, and how values are prepared."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from rayfuse.spec.encoders import ENCODERS, BaseEncoderConfig
from rayfuse.spec.family import CustomConfig, Family, PartOf
from rayfuse.spec.inputs.audio import AudioInput
from rayfuse.spec.inputs.base import BaseInput, ColumnInput
from rayfuse.spec.inputs.chat import ChatInput
from rayfuse.spec.inputs.image import ImageInput
from rayfuse.spec.inputs.item_sequence import ItemSequenceInput
from rayfuse.spec.inputs.tabular import TabularInput
from rayfuse.spec.inputs.text import TextInput
from rayfuse.spec.inputs.timeseries import TimeseriesInput
from rayfuse.spec.inputs.video import VideoInput


class CustomInput(CustomConfig, ColumnInput):
    """A subclass of rayfuse.modalities.Modality, by import path; its encoder is a custom one too."""

    base_class: ClassVar[str] = "rayfuse.modalities.base:Modality"
    holds_lists: ClassVar[bool] = True
    pads_to_longest: ClassVar[bool] = True

    encoder: Annotated[BaseEncoderConfig, PartOf(lambda: ENCODERS["custom"])]
    """A custom encoder."""


INPUTS: Family[BaseInput] = Family(
    "input",
    {
        ImageInput: "rayfuse.modalities.image:ImageModality",
        AudioInput: "rayfuse.modalities.audio:AudioModality",
        VideoInput: "rayfuse.modalities.video:VideoModality",
        TextInput: "rayfuse.modalities.text:TextModality",
        ChatInput: "rayfuse.modalities.chat:ChatModality",
        TimeseriesInput: "rayfuse.modalities.timeseries:TimeSeriesModality",
        TabularInput: "rayfuse.modalities.tabular:TabularModality",
        ItemSequenceInput: "rayfuse.modalities.item_sequence:ItemSequenceModality",
    },
    custom=CustomInput,
)
"""The built-in types of inputs."""


Input = Annotated[BaseInput, PartOf(lambda: INPUTS)]
"""Any input."""


def default_columns(inputs: Any) -> Any:
    """Set the column of each input without one to the input's name; to that of the input it is taken from, if there is one."""
    if not isinstance(inputs, dict):
        return inputs
    return {name: _with_column(name, block, inputs) for name, block in inputs.items()}


def _with_column(name: str, block: Any, inputs: Mapping[str, Any]) -> Any:
    config = INPUTS.config_class(block.get("type")) if isinstance(block, dict) else None
    if not isinstance(block, dict) or (
        config is not None and issubclass(config, BaseInput) and not config.needs_column
    ):
        return block
    retrieve = block.get("retrieve")
    owner = block.get("audio_of") or block.get("part_of")
    source_name = retrieve.get("query") if isinstance(retrieve, dict) else owner
    source = inputs.get(source_name) if isinstance(source_name, str) else None
    if not isinstance(source, dict):
        return {"column": name, **block}
    template = {"template": source["template"]} if "template" in source and retrieve else {}
    return {"column": source.get("column", source_name), **template, **block}


__all__ = [
    "INPUTS",
    "AudioInput",
    "BaseInput",
    "ChatInput",
    "ColumnInput",
    "CustomInput",
    "ImageInput",
    "Input",
    "ItemSequenceInput",
    "TabularInput",
    "TextInput",
    "TimeseriesInput",
    "VideoInput",
    "default_columns",
]
