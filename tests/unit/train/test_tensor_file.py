"""Files that are written piece by piece are what the safetensors library reads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayfuse.train import tensor_file
from rayfuse.train.tensor_file import write_tensors

TENSORS = {
    "bytes": torch.arange(5, dtype=torch.uint8),
    "weights": torch.randn(7, 300),
    "turned": torch.randn(4, 6).T,
    "half": torch.randn(3).bfloat16(),
    "other half": torch.randn(3).half(),
    "number": torch.tensor(2.5),
    "count": torch.tensor(3),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 4),
    "double": torch.randn(2, dtype=torch.float64),
    "numbers": torch.arange(3, dtype=torch.int32),
    'a "name" – ü': torch.ones(1, dtype=torch.int8),
    "short": torch.ones(3, dtype=torch.int16),
}


def test_the_library_reads_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "mine", TENSORS, lambda: None)
    found = load_file(tmp_path / "mine")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    content = (tmp_path / "mine").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # so that tensors are where processors like them
    assert len(content) == 8 + length + sum(tensor.nbytes for tensor in TENSORS.values())


def test_it_pauses_between_pieces_of_large_and_of_many_small_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE", 100)
    pauses: list[int] = []
    write_tensors(tmp_path / "large", {"one": torch.zeros(250)}, lambda: pauses.append(1))
    assert len(pauses) == 10
    write_tensors(tmp_path / "small", {str(n): torch.zeros(10) for n in range(30)}, lambda: pauses.append(2))
    assert pauses.count(2) == 10
    assert torch.equal(load_file(tmp_path / "large")["one"], torch.zeros(250))


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none", {}, lambda: None)
    assert load_file(tmp_path / "none") == {}
