"""Safetensors files written piece by piece; the library has no other way than all at once.

The format: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNED = 8
_PIECE = 1 << 18
"""Bytes between pauses."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], pause: Callable[[], None]) -> None:
    """Write tensors on the CPU by name, calling `pause` between pieces."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb", buffering=_PIECE) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        waiting = 0
        for _, tensor in ordered:
            content: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
            for start in range(0, len(content), _PIECE):
                waiting += file.write(content[start : start + _PIECE])
                if waiting >= _PIECE:
                    pause()
                    waiting = 0
