"""Export of a model, or of its trained encoders, for other tools."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfuse.console import show_log
from rayfuse.errors import SpecError

if TYPE_CHECKING:
    from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
    from rayfuse.model.fused import FusedModel
    from rayfuse.model.language_model import LanguageModel
    from rayfuse.spec.job import Job

ExportFormat = Literal["peft", "merged", "onnx"]
"""`peft`: adapters as PEFT folders; `merged`: Hugging Face folders with merged adapters; `onnx`: the whole model."""
_GATED_LAYERS = (
    "inject: cross_attention adds layers that a Hugging Face folder cannot hold; serve the model with `rayfuse serve up`, or "
    "train it with inject: soft_tokens"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """Folders that were written."""

    folders: Mapping[str, Path]
    """Folder by input; INPUT/PART for an encoder inside another; tasks/TASK for the language model of a task; `model` for
    the whole model."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {"folders": {name: str(folder) for name, folder in self.folders.items()}}

    def __str__(self) -> str:
        return "\n".join(f"{name}: {folder}" for name, folder in self.folders.items())


def export(
    model: str | Path,
    output: str | Path,
    format: ExportFormat = "merged",
    *,
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> ExportResult:
    """Write the pretrained encoders of a model for PEFT or transformers, or the whole model as an ONNX graph.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a model folder or its URL.
        output: Folder; what is written must not exist yet.
        format: `peft` writes the adapter of each encoder that has one to OUTPUT/INPUT, for `PeftModel.from_pretrained`;
            `merged` writes each encoder with its trained weights, tokenizer or processor there, for
            `AutoModel.from_pretrained`; language models of tasks are written to OUTPUT/tasks/TASK; `onnx` writes OUTPUT/model.onnx, and OUTPUT/model.json, which describes it.
        tracking_uri: MLflow for `models:/…`; by default MLFLOW_TRACKING_URI, else `runs/mlflow.db`.
        verbose: Show log lines, unless the application has configured logging.

    Raises:
        SpecError: The model does not exist, has no encoder to export in this format, or a part that ONNX cannot express;
            or `onnx` is chosen without the extra of that name.
        DataError: It is not a model folder, or the folder is damaged.
    """
    from rayfuse.model.model_io import load_model
    from rayfuse.registry.download import fetch

    with show_log(verbose):
        job, loaded = load_model(fetch(str(model), tracking_uri).folder)
        if format == "onnx":
            return _export_graph(job, loaded, Path(output))
        return _export_encoders(str(model), loaded, Path(output), format)


def _export_encoders(name: str, model: "FusedModel", output: Path, format: ExportFormat) -> ExportResult:
    from rayfuse.model.encoders.export import export_adapter

    found = _pretrained_modules(model)
    gated = [path for path, one in found.items() if _has_gated_layers(one)]
    found = {path: one for path, one in found.items() if path not in gated}
    chosen = {path: one for path, one in found.items() if format == "merged" or one.options.adapter}
    if gated and not chosen:
        raise SpecError(f"{name}: {', '.join(gated)}: {_GATED_LAYERS}")
    for path in gated:
        _log.warning("%s: left out; %s", path, _GATED_LAYERS)
    if not chosen:
        kind = "no encoder with an adapter" if format == "peft" else "no pretrained encoder"
        raise SpecError(f"{name}: {kind}, so there is nothing to export" + "; use --merged" * bool(found))
    folders = {path: output / path for path in chosen}
    for folder in folders.values():
        _check_absent(folder)
    for path, module in chosen.items():
        if format == "peft":
            export_adapter(module, folders[path])
        else:
            _merge(model, path, module, folders[path])
        _log.info("%s: written to %s", path, folders[path])
    return ExportResult(folders)


def _merge(
    model: "FusedModel", path: str, module: "HuggingFaceEncoder | LanguageModel", folder: Path
) -> None:
    from rayfuse.model.encoder_decoder import SpeechDecoder
    from rayfuse.model.encoders.export import export_language_model, export_merged, export_with_encoder
    from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
    from rayfuse.model.fused import task_heads
    from rayfuse.model.language_model import VisionLanguageModel

    if isinstance(module, HuggingFaceEncoder):
        export_merged(module, folder)
    elif isinstance(module, SpeechDecoder | VisionLanguageModel):
        [source] = task_heads(model)[path.removeprefix("tasks/")].encoded_inputs
        encoder = model.encoders[source]
        assert isinstance(encoder, HuggingFaceEncoder), "validated in the spec"
        export_with_encoder(module, encoder, folder)
    else:
        export_language_model(module, folder)


def _pretrained_modules(model: "FusedModel") -> "dict[str, HuggingFaceEncoder | LanguageModel]":
    """Return the pretrained encoders by INPUT or INPUT/PART, and the language models by tasks/TASK."""
    from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
    from rayfuse.model.fused import task_heads

    encoders = {
        path.replace(".", "/"): module
        for path, module in model.encoders.named_modules()
        if isinstance(module, HuggingFaceEncoder)
    }
    heads = task_heads(model).items()
    return encoders | {
        f"tasks/{name}": head.language_model for name, head in heads if head.language_model is not None
    }


def _has_gated_layers(module: "HuggingFaceEncoder | LanguageModel") -> bool:
    from rayfuse.model.language_model import LanguageModel

    return isinstance(module, LanguageModel) and module.input_attention is not None


def _export_graph(job: "Job", model: "FusedModel", folder: Path) -> ExportResult:
    from rayfuse.model.onnx_export import export_onnx

    _check_absent(folder)
    export_onnx(job, model, folder)
    _log.info("model: written to %s", folder)
    return ExportResult({"model": folder})


def _check_absent(folder: Path) -> None:
    if folder.exists():
        raise SpecError(f"{folder}: exists already; choose another --output, or remove it")
