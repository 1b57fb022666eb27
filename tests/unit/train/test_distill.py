"""Learning from a teacher."""

from pathlib import Path
from typing import Any

import pytest
import tiny_jobs
import torch

from rayfuse.data.batches import SampleStore
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import SampleMaker
from rayfuse.data.training import training_batch
from rayfuse.errors import DataError
from rayfuse.model.folder import load_model
from rayfuse.model.fused import FusedModel
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.train.distill import check_teacher, keep_teacher, teacher_answers
from rayfuse.train.runs import RunFolder, RunStatus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jobs.make_model_folder(tmp_path_factory.mktemp("teacher"), steps=30)


def student(folder: Path, teacher: Path, **overrides: Any) -> Any:
    return load_dataset(
        tiny_jobs.tiny_job(folder, **{"train.distill": {"teacher": str(teacher)}, **overrides})
    )


@pytest.fixture(scope="module")
def loaded(teacher: Path) -> Any:
    return student(teacher.parent / "data", teacher)


def test_a_teacher_answers_every_row_once(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    rows = dataset.splits["train"]
    answers = teacher_answers(job, rows, str(teacher), 0, 1, CPU)
    taught, model = load_model(teacher)
    maker = SampleMaker(taught.inputs)
    from rayfuse.data.batches import collate

    with torch.no_grad():
        one = model(collate([maker.from_row(rows[5])], maker.modalities))["answer"]
    torch.testing.assert_close(answers["answer"][5:6], one, rtol=1e-4, atol=1e-4)
    assert answers["answer"].shape == (len(rows), 4)


def test_a_student_comes_closer_to_its_teacher(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    answers = teacher_answers(job, dataset.splits["train"], str(teacher), 0, 1, CPU)
    store = SampleStore(dataset.splits["train"], SampleMaker(job.inputs, job.tasks))
    batch = training_batch(range(len(store)), store, job, 0, answers)
    torch.manual_seed(1)
    model = FusedModel(job).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = []
    for _ in range(15):
        optimizer.zero_grad()
        losses = model.losses(model(batch), batch)
        losses["distill/answer"].backward()
        optimizer.step()
        found.append(losses["distill/answer"].item())
    assert found[-1] < 0.5 * found[0]
    assert set(losses) == {"answer", "distill/answer"}
    torch.testing.assert_close(model.total_loss(losses, batch), losses["answer"] + losses["distill/answer"])


def test_a_teacher_has_nothing_to_tell_a_copy_of_itself(loaded: Any, teacher: Path) -> None:
    job, dataset = loaded
    answers = teacher_answers(job, dataset.splits["train"], str(teacher), 0, 1, CPU)
    store = SampleStore(dataset.splits["train"], SampleMaker(job.inputs, job.tasks))
    batch = training_batch(range(8), store, job, 0, answers)
    model = FusedModel(job).eval()
    model.load_state_dict(load_model(teacher)[1].state_dict())
    with torch.no_grad():
        assert model.losses(model(batch), batch)["distill/answer"] < 1e-5


def test_the_teacher_is_fetched_and_kept_with_the_run(loaded: Any, teacher: Path, tmp_path: Path) -> None:
    job, dataset = loaded
    folder = fetch_teacher(job, dataset.splits["train"])
    assert folder == teacher
    run = RunFolder(str(tmp_path / "run"), RunStatus("run", ""))
    run.make()
    url = keep_teacher(teacher, run)
    (Path(url) / "mark").touch()
    assert keep_teacher(teacher, run) == url == str(tmp_path / "run" / "teacher")
    assert (Path(url) / "mark").exists()
    assert (
        fetch_teacher(job.model_copy(update={"train": job.train.model_copy(update={"distill": None})}), [])
        is None
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"tasks.brightness": {"type": "regression"}}, "it has no task `brightness`; it has: answer"),
        ({"tasks.answer": {"type": "regression", "column": "brightness"}, "train.early_stopping": None}, "its task `answer` is classification, here it is regression"),
        ({"tasks.answer.classes": ["unknown", "red", "green", "blue"]}, "has other classes; list the teacher's under tasks.answer.classes"),
    ],
)  # fmt: skip
def test_teachers_that_cannot_teach(
    overrides: dict[str, Any], problem: str, teacher: Path, tmp_path: Path
) -> None:
    job, dataset = student(tmp_path, teacher, **overrides)
    with pytest.raises(DataError, match="train.distill.teacher: .* cannot teach this job: .*") as refused:
        check_teacher(job, dataset.splits["train"], teacher)
    assert problem in str(refused.value)


def test_rows_without_what_a_teacher_needs(loaded: Any, teacher: Path, tmp_path: Path) -> None:
    job, dataset = loaded
    rows = [type(row)({**row.values, "text": None}, row.file, row.line) for row in dataset.splits["train"]]
    with pytest.raises(
        DataError, match=r"needs the input `text`, and (\d+) of \1 training rows have nothing"
    ):
        check_teacher(job, rows, teacher)
