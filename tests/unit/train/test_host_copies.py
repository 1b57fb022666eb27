"""Copies for checkpoints take the same memory again, and never that of one which is still being written."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rayfuse.spec.checkpointing import Keep
from rayfuse.train import loop
from rayfuse.train.checkpoints import Saver
from rayfuse.train.host_copies import copy_to_cpu


def test_later_copies_go_over_earlier_ones() -> None:
    into: dict[str, torch.Tensor] = {}
    first = copy_to_cpu([("a", torch.ones(3))], into)
    second = copy_to_cpu([("a", torch.full((3,), 2.0))], into)
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    assert copy_to_cpu([("a", torch.ones(3))])["a"].data_ptr() != first["a"].data_ptr()


def test_a_save_waits_for_the_one_before_it(tmp_path: Path, monkeypatch: Any) -> None:
    weights = {"w": torch.zeros(4)}
    may_write = threading.Event()

    def write(folder: Path, job: Any, model: Any, *_: Any) -> None:
        assert may_write.wait(30)
        save_file(model, folder / "model.safetensors")

    monkeypatch.setattr(loop, "gather_model", lambda engine: weights.items())
    monkeypatch.setattr(loop, "gather_optimizer", lambda engine: ())
    monkeypatch.setattr(loop, "write_checkpoint", write)
    worker: Any = SimpleNamespace(
        saver=Saver(str(tmp_path), Keep(last=2, best=1), lambda metrics: 0.0), engine=SimpleNamespace(torch_autocast_z0_gradscaler=None, optimizer=None), copies={}, averages={},
        average=None, job=None, position=loop.Position(step=1), agenda=SimpleNamespace(saved=lambda: None, warned=False),
        guard=SimpleNamespace(state=dict),
    )  # fmt: skip
    loop.Worker.save(worker)
    weights["w"].fill_(1.0)
    worker.position.step = 2
    second = threading.Thread(target=loop.Worker.save, args=(worker,))
    second.start()
    second.join(0.2)  # time to go wrong in
    may_write.set()
    second.join()
    worker.saver.wait()
    found = [load_file(tmp_path / f"checkpoints/step-0000000{n}/model.safetensors")["w"] for n in (1, 2)]
    assert [part.tolist() for part in found] == [[0.0] * 4, [1.0] * 4]
