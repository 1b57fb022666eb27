"""Export of a model as one ONNX graph, from preprocessed features and presence masks to predictions.

FOLDER/model.onnx        the graph; model.onnx.data has its weights if they are large
FOLDER/model.json        inputs, outputs and preprocessing
FOLDER/encoders/INPUT/…  tokenizer or processor of a pretrained encoder
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rayfuse
from rayfuse.data.collate import Batch, EncoderBatch
from rayfuse.errors import SpecError
from rayfuse.modalities import Modality, build_modality
from rayfuse.model.encoders.export import copy_preprocessing_files
from rayfuse.model.fused import FusedModel, task_heads
from rayfuse.model.tasks import TaskHead
from rayfuse.spec.encoders import iter_pretrained_encoders
from rayfuse.spec.inputs import BaseInput
from rayfuse.spec.job import Job

FORMAT_VERSION = 1
GRAPH_FILE, DESCRIPTION_FILE = "model.onnx", "model.json"
_PACKAGES = ("onnx", "onnxscript")
_OPSET = 20
_EXAMPLE_ROWS = 2  # torch.export makes sizes of 0 and 1 constant
_BATCH = torch.export.Dim("batch")


@dataclass(frozen=True)
class _GraphInput:
    """A tensor that the graph reads."""

    input: str
    feature: str
    example: torch.Tensor
    dynamic_axes: dict[int, Any]
    """Axes whose size may vary, as `torch.export` takes them."""

    @property
    def name(self) -> str:
        return f"{self.input}.{self.feature}"


class _Graph(nn.Module):
    """A model as a function of the tensors of `inputs` to a tensor of predictions per task."""

    def __init__(self, model: FusedModel, inputs: Sequence[_GraphInput]) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        features: dict[str, dict[str, torch.Tensor]] = {}
        for described, tensor in zip(self._inputs, tensors, strict=True):
            features.setdefault(described.input, {})[described.feature] = tensor
        batch = {name: _encoder_batch(found.pop("present"), found) for name, found in features.items()}
        weights = next(iter(batch.values())).index[:, 0].float()
        outputs = self.model(Batch(batch, {}, weights)).tasks
        return [_predictions(head, outputs[name]) for name, head in task_heads(self.model).items()]


def export_onnx(job: Job, model: FusedModel, folder: Path) -> None:
    """Write a model in evaluation mode as an ONNX graph to a new folder.

    Features of a value that is not present may be any finite numbers. Raises SpecError with the part of the model that
    ONNX cannot express, or if the extra `onnx` is not installed.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise SpecError(f"export to ONNX needs {' and '.join(missing)}; `pip install 'rayfuse[onnx]'`")
    for name, head in task_heads(model).items():
        if type(head).prediction_tensor is TaskHead.prediction_tensor:
            raise SpecError(
                f"tasks.{name}: predictions of type {job.tasks[name].type} are not exported to ONNX; export a model without "
                "this task"
            )
    inputs = [tensor for name, options in job.inputs.items() for tensor in _graph_inputs(name, options)]
    program = _convert(_Graph(model, inputs).eval(), inputs, list(job.tasks))
    folder.mkdir(parents=True)
    program.save(folder / GRAPH_FILE)
    description = {
        "format": FORMAT_VERSION,
        "rayfuse": rayfuse.__version__,
        "graph": GRAPH_FILE,
        "opset": _OPSET,
        **_describe_tensors(job, model, program.model_proto.graph),
        "preprocessing": {
            name: _describe_preprocessing(name, options, folder) for name, options in job.inputs.items()
        },
    }
    (folder / DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8"
    )


def _encoder_batch(present: torch.Tensor, features: dict[str, torch.Tensor]) -> EncoderBatch:
    """Convert a value per sample, or a list of values per sample, to the distinct values that the model encodes."""
    if present.ndim == 1:
        present = present.unsqueeze(1)
    else:
        features = {key: tensor.flatten(0, 1) for key, tensor in features.items()}
    places = torch.arange(present.shape[0] * present.shape[1]).view(present.shape)
    return EncoderBatch(features, torch.where(present, places, -1))


def _predictions(head: TaskHead, outputs: torch.Tensor) -> torch.Tensor:
    found = head.prediction_tensor(outputs)
    assert found is not None, "tasks without a tensor are rejected before"
    return found.float()


def _graph_inputs(name: str, options: BaseInput) -> Iterator[_GraphInput]:
    """Yield the features of an input and its presence, with examples of the maximum length.

    Axes in which the shortest and the longest value differ may vary, if the encoder allows it.
    """
    modality: Modality = build_modality(options)
    shortest = modality.collate([modality.dummy_features()])
    leading = (_EXAMPLE_ROWS, options.max_items) if options.max_items > 1 else (_EXAMPLE_ROWS,)
    for key, values in modality.collate([modality.longest_features()]).items():
        tensor = torch.as_tensor(values)
        lengths = {
            axis + len(leading) - 1: torch.export.Dim.AUTO
            for axis in range(1, tensor.ndim)
            if tensor.shape[axis] != shortest[key].shape[axis]
        }
        example = tensor.expand(leading + tensor.shape[1:]).clone()
        yield _GraphInput(name, key, example, {0: _BATCH, **lengths})
    yield _GraphInput(name, "present", torch.ones(leading, dtype=torch.bool), {0: _BATCH})


def _convert(graph: _Graph, inputs: Sequence[_GraphInput], tasks: list[str]) -> Any:
    """Convert the model to ONNX. Raises SpecError with the part of it that cannot be converted."""
    running: list[str] = []
    try:
        with torch.no_grad(), _quiet(), _track_parts(graph.model, running):
            exported = torch.export.export(
                graph,
                ([one.example for one in inputs],),
                dynamic_shapes=([one.dynamic_axes for one in inputs],),
                strict=False,
            )
            program = torch.onnx.export(
                exported,
                input_names=[one.name for one in inputs],
                output_names=tasks,
                opset_version=_OPSET,
                verbose=False,
            )
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SpecError(
            f"{running[-1] if running else 'model'}: this type cannot be converted to ONNX ({type(error).__name__}: {reason}); "
            "train a model with another type, or serve this one with `rayfuse serve`"
        ) from error
    assert program is not None, "None is returned only when a file is given"
    _name_axes(program, inputs)
    return program


def _name_axes(program: Any, inputs: Sequence[_GraphInput]) -> None:
    """Name the axes that may vary in size: `batch`, and INPUT.length where values differ in length.

    A feature that has another length than those of its input before it gets INPUT.FEATURE.length.
    """
    names: dict[str, str] = {}
    for value, described in zip(program.model.graph.inputs, inputs, strict=True):
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                name = "batch" if place == 0 else f"{described.input}.length"
                is_other = place > 0 and name in names.values()
                names.setdefault(str(size.value), f"{described.name}.length" if is_other else name)
    program.rename_axes(names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide notes of the exporter about packages that are not installed, and about its own future."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _track_parts(model: FusedModel, running: list[str]) -> Iterator[None]:
    """Keep the parts whose `forward` runs in `running`, the innermost last, by their place in the spec."""
    named: dict[str, nn.Module] = {
        **{f"inputs.{name}.encoder": encoder for name, encoder in model.encoders.items()},
        **{f"inputs.{name}.align": alignment for name, alignment in model.alignment.items()},
        "fusion": model.fusion,
        **{f"tasks.{name}": head for name, head in model.tasks.items()},
    }
    handles = []
    for name, module in named.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _describe_tensors(job: Job, model: FusedModel, graph: Any) -> dict[str, Any]:
    """Describe the inputs and outputs of an ONNX graph; outputs with labels are the probability of each."""
    outputs = []
    for value, (name, head) in zip(graph.output, task_heads(model).items(), strict=True):
        classes: Any = getattr(head, "classes", None)
        labels = {} if classes is None else {"labels": list(classes)}
        outputs.append({**_describe_tensor(value), "task": name, "type": job.tasks[name].type, **labels})
    inputs = []
    for value in graph.input:
        name, _, feature = value.name.rpartition(".")
        inputs.append({**_describe_tensor(value), "input": name, "feature": feature})
    return {"inputs": inputs, "outputs": outputs}


def _describe_tensor(value: Any) -> dict[str, Any]:
    """Return the name, data type and shape of a value of an ONNX graph; sizes that may vary are names."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return {"name": value.name, "dtype": str(tensor_dtype_to_np_dtype(tensor.elem_type)), "shape": shape}


def _describe_preprocessing(name: str, options: BaseInput, folder: Path) -> dict[str, Any]:
    """Return the options of an input as fitted, and copy the files that its tokenizer or processor needs."""
    content = options.model_dump(mode="json")
    for path, encoder in iter_pretrained_encoders(options.encoder):
        relative = "/".join(["encoders", name, *path])
        (folder / relative).mkdir(parents=True)
        copy_preprocessing_files(encoder.model, folder / relative)
        block = content["encoder"]
        for key in path:
            block = block[key]
        block["model"] = f"./{relative}"
    return content
