"""The training loop, with one worker and a real engine in a separate process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ranks
import tiny_jobs
import torch

from rayfuse.errors import RayfuseError
from rayfuse.training.checkpoints import Checkpoint, list_checkpoints
from rayfuse.training.state import read_train_state
from rayfuse.training.telemetry import Telemetry

EPOCHS = 2


class Recorder(Telemetry):
    """Telemetry and reporter that note the order of events; all weights are NaN before step `poisoned`."""

    def __init__(self, poisoned: int = 0) -> None:
        super().__init__(None, torch.device("cpu"))
        self.events: list[Any] = []
        self.poisoned = poisoned
        self.trainer: Any = None

    def log_step(self, step_metrics: Any, steps: int, epochs: int) -> None:
        self.events.append(["step", step_metrics.position.step])

    def count_flops(self, batches: Any) -> Any:
        if self.trainer.state.step + 1 == self.poisoned:
            for parameter in self.trainer.engine.module.parameters():
                parameter.data.fill_(float("nan"))
        return super().count_flops(batches)

    def report(self, metrics: Mapping[str, float], checkpoint_url: str | None, epoch: int, step: int) -> None:
        assert checkpoint_url is not None
        self.events.append(["epoch", epoch, step, Path(checkpoint_url).name, sorted(metrics)[0]])

    def report_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.events.append(["checkpoints", sorted(checkpoint.step for checkpoint in checkpoints)])


def _run(rank: int, world: int, job_json: str, poisoned: int, folder: Path) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.deepspeed_config import load_deepspeed_config

    job, dataset = load_dataset(validate_spec(json.loads(job_json), Job, "job"))
    (folder / "run").mkdir(exist_ok=True)
    recorder = Recorder(poisoned)
    trainer = recorder.trainer = build_trainer(
        job,
        dataset.splits,
        load_deepspeed_config(job),
        run=str(folder / "run"),
        telemetry=recorder,
        reporter=recorder,
    )
    try:
        summary = trainer.run(print, evaluate=not poisoned)
    except RayfuseError as error:
        summary = {"error": str(error)}
    found = {"events": recorder.events, "summary": summary}
    (folder / "found.json").write_text(json.dumps(found, default=str))


def run(folder: Path, poisoned: int = 0, **overrides: Any) -> Any:
    data = folder / "data"
    tiny_jobs.make_rows(data, 16, "train")
    tiny_jobs.make_rows(data, 8, "test")
    settings = {"train.epochs": EPOCHS, "train.batch_size": 4, "train.early_stopping": None}
    job = tiny_jobs.tiny_job(data, **settings, **overrides)
    ranks.spawn(_run, 1, job.model_dump_json(), poisoned, folder)
    return json.loads((folder / "found.json").read_text())


def test_each_epoch_is_reported_after_its_steps_and_the_best_checkpoint_is_evaluated(tmp_path: Path) -> None:
    found = run(tmp_path)
    events, summary = found["events"], found["summary"]
    steps = summary["steps"]
    per_epoch = steps // EPOCHS
    expected: list[Any] = []
    for epoch in range(1, EPOCHS + 1):
        done = epoch * per_epoch
        expected += [["step", step] for step in range(done - per_epoch + 1, done + 1)]
        expected.append(["epoch", epoch, done, f"step-{done:08d}", events[per_epoch][4]])
    kept = sorted(checkpoint.step for checkpoint in list_checkpoints(str(tmp_path / "run")))
    assert events == [*expected, ["checkpoints", kept]]
    assert len(summary["history"]) == EPOCHS
    assert summary["best_validation"] in summary["history"]
    assert summary["split"] == "test"
    assert summary["rows"] == 8
    assert set(summary["by_inputs"]) == {"image+text", "image", "text"}
    assert Path(summary["checkpoint"]).is_dir()
    assert (tmp_path / "run" / "calibration.safetensors").exists()


def test_a_nan_loss_stops_the_run_and_names_the_rows(tmp_path: Path) -> None:
    found = run(tmp_path, poisoned=2)
    assert [event for event in found["events"] if event[0] == "step"] == [["step", 1]]
    error = found["summary"]["error"]
    assert error.startswith("the loss is nan at step 2, on the rows ")
    assert "train.jsonl:" in error
    assert error.endswith("set train.loss_guard.action: rollback to skip such batches")


def test_a_time_budget_ends_training_after_an_epoch(tmp_path: Path) -> None:
    summary = run(tmp_path, **{"train.time_budget": "1ms"})["summary"]
    assert len(summary["history"]) == 1
    assert summary["best_validation"] == summary["history"][0]
    [checkpoint] = list_checkpoints(str(tmp_path / "run"))
    state = read_train_state(Path(checkpoint.url))
    assert state.stopped_early
    assert state.seconds > 0.001
