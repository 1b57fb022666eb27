import warnings
from pathlib import Path

import pytest

from rayfuse.evaluation.plots import draw_confusion, metric_curves, save_plots

RECORDS = [
    {"time": 0.0, "step": 1, "metrics": {"train/loss": 3.0, "system/cpu": 50.0}},
    {"time": 1.0, "step": 2, "metrics": {"train/loss": 2.0}},
    {"time": 2.0, "step": 2, "metrics": {"validation/loss": 2.5, "validation/answer/accuracy": 0.4}},
    {"time": 3.0, "step": 2, "metrics": {"train/loss": 1.5}},
    {"time": 4.0, "data": {"digests": {}}},
]


def test_curves_have_training_and_validation_metrics_with_the_last_value_of_a_step() -> None:
    curves = metric_curves(RECORDS)
    assert curves["train/loss"] == [(1, 3.0), (2, 1.5)]
    assert curves.keys() == {"train/loss", "validation/loss", "validation/answer/accuracy"}


def test_a_run_gets_each_plot(tmp_path: Path) -> None:
    evaluation = {
        "split": "test",
        "metrics": {"answer/accuracy": 0.5},
        "by_inputs": {"image+text": {"answer/accuracy": 0.5}, "text": {"answer/accuracy": 0.3}},
        "details": {
            "answer": {"classes": ["no", "yes"], "confusion": [[0, 0, 3], [0, 1, 1], [1, 0, 2]]},
            "price": {},
        },
    }
    paths = save_plots(tmp_path / "plots", evaluation, RECORDS, "answer/accuracy")
    assert [path.name for path in paths] == ["confusion_answer.png", "by_inputs.png", "learning_curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_throughput_is_drawn_if_it_was_logged(tmp_path: Path) -> None:
    speed = {"train/samples_per_second": 400.0, "train/tokens_per_second": 9000.0, "train/data_wait": 0.02}
    records = [{"time": float(step), "step": step, "metrics": speed} for step in (1, 2, 3)]
    paths = save_plots(tmp_path, {"details": {}, "by_inputs": {}}, records, "loss", "min")
    assert [path.name for path in paths] == ["learning_curves.png", "throughput.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_one_subset_and_no_records_draw_nothing(tmp_path: Path) -> None:
    assert (
        save_plots(tmp_path, {"details": {}, "by_inputs": {"text": {"loss": 1.0}}}, [], "loss", "min") == []
    )


def test_subsets_of_many_inputs_leave_room_for_the_bars(tmp_path: Path) -> None:
    inputs = [f"question_with_a_long_name_{number}" for number in range(8)]
    subsets = [inputs, *([one] for one in inputs), *([*inputs[:i], *inputs[i + 1 :]] for i in range(8))]
    by_inputs = {"+".join(subset): {"loss": 0.1 * i} for i, subset in enumerate(subsets)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns if the bars have no width
        [path] = save_plots(tmp_path, {"details": {}, "by_inputs": by_inputs}, [], "loss", "min")
    assert path.name == "by_inputs.png"


@pytest.mark.parametrize("classes", [2, 50, 1000])
def test_confusion_of_few_and_of_many_classes(classes: int, tmp_path: Path) -> None:
    from PIL import Image

    cells = [(i, i, 1) for i in range(1, classes)]  # the first class has no rows
    draw_confusion(
        tmp_path / "c.png", cells, [f"a class with a long name {i}" for i in range(classes)], "title"
    )
    with Image.open(tmp_path / "c.png") as image:
        assert 300 < image.width < 3600
        assert 300 < image.height < 3600
