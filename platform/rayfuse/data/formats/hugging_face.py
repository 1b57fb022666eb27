"""Folders and features of Hugging Face `datasets`, read without that library."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from rayfuse.errors import DataError

_METADATA_KEY = b"huggingface"
_SPLITS_FILE, _STATE_FILE = "dataset_dict.json", "state.json"

Decoder = Callable[[Any], Any]


def list_dataset_files(fs: Any, path: str, names: list[str], url: str) -> list[str] | None:
    """Return the data files of a folder that `save_to_disk` has written; None for another folder.

    Others are caches of operations on the dataset. Raises DataError for the folder of several splits.
    """
    by_name = {name.rpartition("/")[2]: name for name in names}
    if _SPLITS_FILE in by_name:
        splits = json.loads(fs.cat_file(by_name[_SPLITS_FILE]))["splits"]
        folders = ", ".join(f"{url.rstrip('/')}/{split}" for split in splits)
        raise DataError(f"{url}: a dataset of several splits; write the folder of one of them: {folders}")
    if _STATE_FILE not in by_name or "dataset_info.json" not in by_name:
        return None
    state = json.loads(fs.cat_file(by_name[_STATE_FILE]))
    return [f"{path.rstrip('/')}/{file['filename']}" for file in state["_data_files"]]


def label_decoders(schema: Any) -> dict[str, Decoder]:
    """Return how the columns with a ClassLabel in an Arrow schema are converted to the names of classes."""
    content = (schema.metadata or {}).get(_METADATA_KEY)
    try:
        features = json.loads(content)["info"]["features"] if content else {}
    except (ValueError, KeyError, TypeError):
        return {}  # written by another version
    found = {column: _decoder(feature) for column, feature in features.items()}
    return {column: decode for column, decode in found.items() if decode is not None}


def _decoder(feature: Any) -> Decoder | None:
    """Return the conversion of a feature's values; None if it has no ClassLabel."""
    if isinstance(feature, list):  # of one feature
        return _list_decoder(_decoder(feature[0]) if feature else None)
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _name_decoder(feature.get("names") or [])
    if isinstance(kind, str):
        return _list_decoder(_decoder(feature.get("feature")))
    fields = {name: _decoder(inner) for name, inner in feature.items()}
    return _mapping_decoder({name: decode for name, decode in fields.items() if decode is not None})


def _name_decoder(names: list[str]) -> Decoder:
    def decode(value: Any) -> Any:
        if not isinstance(value, int) or value >= len(names):
            return value
        return names[value] if value >= 0 else None  # -1: no label

    return decode


def _list_decoder(decode: Decoder | None) -> Decoder | None:
    """Convert the items of lists; a list of mappings may be stored as a mapping of lists."""
    if decode is None:
        return None

    def decode_items(value: Any) -> Any:
        return [decode(item) for item in value] if isinstance(value, list) else value

    return decode_items


def _mapping_decoder(decoders: Mapping[str, Decoder]) -> Decoder | None:
    if not decoders:
        return None

    def decode_fields(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: decoders[name](inner) if name in decoders else inner for name, inner in value.items()}

    return decode_fields
