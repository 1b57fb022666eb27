"""Distillation from a teacher."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.sampler import SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.data.train_batches import build_train_batch
from rayfuse.errors import DataError
from rayfuse.model.fused import FusedModel
from rayfuse.model.model_io import load_model
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.training.distillation import check_teacher, compute_teacher_outputs, copy_teacher
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.runs import RunFolder, RunStatus


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jobs.make_model_folder(tmp_path_factory.mktemp("teacher"), steps=30)


def student(folder: Path, teacher: Path, **overrides: Any) -> Any:
    return load_dataset(
        tiny_jobs.tiny_job(folder, **{"train.distillation": {"teacher": str(teacher)}, **overrides})
    )


@pytest.fixture(scope="module")
def loaded(teacher: Path) -> Any:
    return student(teacher.parent / "data", teacher)


def test_the_teacher_predicts_every_row_once(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    rows = dataset.splits["train"]
    outputs = compute_teacher_outputs(job, rows, str(teacher), DistributedContext())
    teacher_job, model = load_model(teacher)
    preprocessor = Preprocessor(teacher_job.inputs)
    with torch.no_grad():
        one = model(collate([preprocessor.from_row(rows[5])], preprocessor.modalities)).tasks["answer"]
    torch.testing.assert_close(outputs["answer"][5:6], one, rtol=1e-4, atol=1e-4)
    assert outputs["answer"].shape == (len(rows), 4)


def test_a_student_learns_the_outputs_of_its_teacher(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    outputs = compute_teacher_outputs(job, dataset.splits["train"], str(teacher), DistributedContext())
    store = SampleCache(dataset.splits["train"], Preprocessor(job.inputs, job.tasks))
    batch = build_train_batch(range(len(store)), store, job, 0, outputs)
    torch.manual_seed(1)
    model = FusedModel(job).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = []
    for _ in range(15):
        optimizer.zero_grad()
        losses = model.losses(model(batch), batch)
        losses.distillation["answer"].backward()
        optimizer.step()
        found.append(losses.distillation["answer"].item())
    assert found[-1] < 0.5 * found[0]
    assert set(losses.to_metrics()) == {"answer", "distillation/answer"}
    torch.testing.assert_close(
        model.total_loss(losses, batch), losses.tasks["answer"] + losses.distillation["answer"]
    )


def test_a_copy_of_the_teacher_has_no_loss(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    outputs = compute_teacher_outputs(job, dataset.splits["train"], str(teacher), DistributedContext())
    store = SampleCache(dataset.splits["train"], Preprocessor(job.inputs, job.tasks))
    batch = build_train_batch(range(8), store, job, 0, outputs)
    model = FusedModel(job).eval()
    model.load_state_dict(load_model(teacher)[1].state_dict())
    with torch.no_grad():
        assert model.losses(model(batch), batch).distillation["answer"] < 1e-5


def test_the_teacher_is_copied_into_the_run_once(loaded: Any, teacher: Path, tmp_path: Path) -> None:
    job, dataset = loaded
    folder = fetch_teacher(job, dataset.splits["train"])
    assert folder == teacher
    run = RunFolder(str(tmp_path / "run"), RunStatus("run", ""))
    run.create()
    url = copy_teacher(teacher, run)
    (Path(url) / "mark").touch()
    assert copy_teacher(teacher, run) == url == str(tmp_path / "run" / "teacher")
    assert (Path(url) / "mark").exists()
    assert (
        fetch_teacher(
            job.model_copy(update={"train": job.train.model_copy(update={"distillation": None})}), []
        )
        is None
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"tasks.brightness": {"type": "regression"}}, "it has no task `brightness`; it has: answer"),
        ({"tasks.answer": {"type": "regression", "column": "brightness"}, "train.early_stopping": None}, "its task `answer` is classification, here it is regression"),
        ({"tasks.answer.classes": ["unknown", "red", "green", "blue"]}, "has other classes; set tasks.answer.classes to the teacher's"),
    ],
)  # fmt: skip
def test_teachers_that_cannot_teach(
    overrides: dict[str, Any], problem: str, teacher: Path, tmp_path: Path
) -> None:
    job, dataset = student(tmp_path, teacher, **overrides)
    with pytest.raises(DataError, match="train.distillation.teacher: .* does not fit this job: .*") as caught:
        check_teacher(job, dataset.splits["train"], teacher)
    assert problem in str(caught.value)


def test_rows_without_a_required_input_of_the_teacher(loaded: Any, teacher: Path, tmp_path: Path) -> None:
    job, dataset = loaded
    rows = [type(row)({**row.values, "text": None}, row.file, row.line) for row in dataset.splits["train"]]
    with pytest.raises(
        DataError,
        match=r"(?s)requires `text`, and (\d+) of \1 training rows have no valid value for it:\n  .*train.jsonl:\d+: text: missing",
    ):
        check_teacher(job, rows, teacher)


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"type": "image", "size": 8, "max_items": 2}, ["train0.png"], [[], [None], [{"bytes": None, "path": None}]]),
        ({"type": "item_sequence", "min_frequency": 1}, ["a", "b"], [None, []]),
        ({"type": "timeseries", "channels": 1}, [[1.0, 2.0]], [[[None, None]]]),
    ],
)  # fmt: skip
def test_inputs_of_a_teacher_without_content_are_absent(
    options: dict[str, Any], present: Any, absent: list[Any], tmp_path: Path
) -> None:
    encoder = {"type": "transformer" if options["type"] == "item_sequence" else "conv"}
    tiny_jobs.make_rows(tmp_path, 24)  # writes train0.png
    full = [{"text": f"{i}", "label": "ab"[i % 2], "x": present} for i in range(24)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", full)
    tiny_jobs.write_rows(tmp_path / "test.jsonl", full)
    needs_x = tiny_jobs.tiny_job(tmp_path, **{"inputs.x": {**options, "encoder": encoder}})
    folder = tiny_jobs.make_model_folder(tmp_path, 0, job=needs_x)
    sparse = [{**row, "x": value} for row, value in zip(full, absent, strict=False)]
    tiny_jobs.write_rows(tmp_path / "train.jsonl", full[len(absent) :] + sparse)
    job, dataset = student(tmp_path, folder, **{"data.validation": str(tmp_path / "test.jsonl")})
    with pytest.raises(
        DataError, match=rf"requires `text`, `x`, and {len(absent)} of 24 training rows have no valid"
    ):
        check_teacher(job, dataset.splits["train"], folder)
