"""Names and paths in a drafted job."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfuse.data.files import compression, data_suffix
from rayfuse.schema_inference.splits import SPLIT_NAMES

_MAX_NAME_CHARS = 63
_COMMON = {name for names in SPLIT_NAMES.values() for name in names} | {"all", "data", "rows", "dataset"}
_SPLIT_WORD = re.compile(r"[-_.]?(train(ing)?|Train(ing)?|TRAIN)(?=[-_.]|$)")
_PLACES = {"type": 0, "column": 1, "audio_of": 1, "others": 2, "encoder": 3, "augment": 4, "optional": 5}
"""Order of the keys of inputs and tasks."""
_TABLE_NAME = "table"


def choose_job_name(rows: Any, targets: Sequence[str]) -> str:
    """Return a name from those of the data and the first target, such as `reviews-rating`."""
    source = _name_of_data(rows)
    parts = [_clean(source), _clean(targets[0])]
    return _clean("-".join(filter(None, parts))[:_MAX_NAME_CHARS]) or "job"


def _name_of_data(rows: Any) -> str:
    url = rows[0] if isinstance(rows, tuple) else rows
    if not isinstance(url, str):
        return _TABLE_NAME
    path = str(Path(url).absolute()) if "://" not in url else url.partition("://")[2].partition("?")[0]
    path = path.partition("#")[0].rstrip("/")
    name = path.rpartition("/")[2]
    if "." in name and not Path(path).is_dir():
        name = name.removesuffix(compression(name))
        name = name[: -len(data_suffix(name))] if name.lower().endswith(data_suffix(name)) else name
    stem = _SPLIT_WORD.sub("", re.sub(r"-\d+-of-\d+$|[*?\[\]]", "", name))
    folder = path.rpartition("/")[0]
    return _name_of_data(f"/{folder.lstrip('/')}") if stem.lower() in ("", *_COMMON) and folder else stem


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text.encode("ascii", "ignore").decode()).strip("-_.")


def relative_paths(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a job with local paths of rows relative to a folder, and without what is a default."""
    shown = dict(content)
    shown["data"] = {
        key: _relative(value, folder) if key in SPLIT_NAMES else value
        for key, value in sorted(content["data"].items(), key=lambda item: item[0] != "train")
    }
    for block in ("inputs", "tasks"):
        shown[block] = {
            name: _without_default_column(name, options) for name, options in content[block].items()
        }
    if content.get("output") == {"storage": str(Path.cwd() / "runs")}:
        del shown["output"]
    return shown


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_relative(item, folder) for item in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    return os.path.relpath(value, folder)


def _without_default_column(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    is_default = options.get("column") == name and options["type"] != "tabular"
    hidden = "column" if is_default or options.get("audio_of") else None
    keys = sorted(options, key=lambda key: _PLACES.get(key, _PLACES["others"]))
    return {key: _short(options[key]) for key in keys if key != hidden}


def _short(value: Any) -> Any:
    """Return the columns of a table with their kinds alone: `age: number`."""
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(of, Mapping) and of.keys() == {"type"} for of in value.values())
    ):
        return {name: of["type"] for name, of in value.items()}
    return value
