"""Reports to Ray Train, recorded by a stand-in."""

import types
from pathlib import Path
from typing import Any

import pytest
import ray.train

from rayfuse.spec.checkpointing import RetentionPolicy
from rayfuse.training.checkpoints import AsyncCheckpointer
from rayfuse.training.ray_reporter import RayReporter


class Calls(list[dict[str, Any]]):
    def report(self, metrics: dict[str, Any], **options: Any) -> None:
        self.append({"metrics": metrics, **options})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    found = Calls()
    storage = types.SimpleNamespace(experiment_fs_path=str(tmp_path), storage_filesystem=None)
    monkeypatch.setattr(ray.train, "report", found.report)
    monkeypatch.setattr(ray.train, "get_context", lambda: types.SimpleNamespace(get_storage=lambda: storage))
    return found


def test_an_epoch_is_reported_in_finite_numbers(calls: Calls, tmp_path: Path) -> None:
    metrics = {"loss": float("nan"), "answer/accuracy": 0.5}
    RayReporter(str(tmp_path)).report(metrics, "/runs/a/checkpoints/step-00000010", 2, 10)
    [call] = calls
    assert call["metrics"] == {
        "epoch": 2,
        "step": 10,
        "answer/accuracy": 0.5,
        "checkpoint_url": "/runs/a/checkpoints/step-00000010",
    }
    assert call["checkpoint"] is None


def test_an_epoch_without_a_checkpoint_is_reported(calls: Calls, tmp_path: Path) -> None:
    RayReporter(str(tmp_path)).report({"loss": 0.5}, None, 1, 5)
    assert [call["metrics"] for call in calls] == [{"epoch": 1, "step": 5, "loss": 0.5}]


def test_the_kept_checkpoints_are_reported_and_neither_copied_nor_removed(
    calls: Calls, tmp_path: Path
) -> None:
    checkpointer = AsyncCheckpointer(
        str(tmp_path), RetentionPolicy(last=2, best=1), lambda metrics: -float(metrics["loss"])
    )
    for step, loss in {10: 0.9, 20: 0.1, 30: 0.5, 35: None, 40: 0.4}.items():
        metrics = None if loss is None else {"loss": loss}
        checkpointer.save(
            step, metrics, lambda folder: (folder / "model.safetensors").write_bytes(b"w") and None
        )
    RayReporter(str(tmp_path)).report_checkpoints(checkpointer.best_checkpoints())
    assert [call["metrics"]["step"] for call in calls] == [20, 40]
    for call in calls:
        path = Path(call["checkpoint"].path)
        assert path == tmp_path / "checkpoints" / f"step-{call['metrics']['step']:08d}"
        assert (path / "manifest.json").is_file()
        assert call["checkpoint_upload_fn"](call["checkpoint"], "any name") is call["checkpoint"]
        assert call["delete_local_checkpoint_after_upload"] is False
