"""Metrics over batches, workers and subsets of inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_jobs
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor
from rayfuse.model.evaluation import (
    EvaluationOutputs,
    collect_outputs,
    compute_metrics,
    details,
    evaluated_subsets,
    nonempty_subsets,
    subset_name,
)
from rayfuse.model.fused import FusedModel, task_heads


def test_subsets_are_sorted_by_size_then_by_input_order() -> None:
    names = [subset_name(subset) for subset in nonempty_subsets(["image", "audio", "text"])]
    assert names == ["image+audio+text", "image+audio", "image+text", "audio+text", "image", "audio", "text"]
    assert nonempty_subsets(["text"]) == [("text",)]


def test_subsets_of_many_inputs_are_bounded_and_have_the_most_frequent_of_the_samples() -> None:
    names = list("abcdefgh")
    assert evaluated_subsets(names[:5]) == nonempty_subsets(names[:5])
    chosen = evaluated_subsets(names)
    assert [len(subset) for subset in chosen] == [8, *[7] * 8, *[1] * 8]
    present = {name: [np.array([name in "bdf", True, False]), np.array([name in "bdf"])] for name in names}
    assert set(evaluated_subsets(names, present)) - set(chosen) == {("b", "d", "f")}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = {"tasks.brightness": {"type": "regression", "weight": 0.5}}
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path_factory.mktemp("evaluation"), **overrides))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    return job, model, preprocessor, [preprocessor.from_row(row) for row in dataset.splits["test"]]


def batches(setting: Any, size: int, start: int = 0, step: int = 1) -> list[Batch]:
    _, _, preprocessor, samples = setting
    chosen = samples[start::step]
    return [collate(chosen[i : i + size], preprocessor.modalities) for i in range(0, len(chosen), size)]


def scored(setting: Any, outputs: EvaluationOutputs) -> dict[str, float]:
    job, model, *_ = setting
    return compute_metrics(task_heads(model), job, outputs)


def test_scores_do_not_depend_on_the_batches(setting: Any) -> None:
    job, model, _, samples = setting
    heads = task_heads(model)
    whole, parts = (collect_outputs(model, heads, batches(setting, size))[0] for size in (100, 5))
    assert whole.num_samples == parts.num_samples == len(samples)
    assert scored(setting, whole) == pytest.approx(scored(setting, parts), rel=1e-5)
    assert set(scored(setting, whole)) == set(job.metric_modes())
    assert scored(setting, whole)["loss"] == pytest.approx(
        scored(setting, whole)["answer/loss"] + 0.5 * scored(setting, whole)["brightness/loss"]
    )
    assert sum(count for _, _, count in details(heads, whole)["answer"]["confusion"]) == len(samples)


def test_the_loss_is_the_mean_over_samples(setting: Any) -> None:
    _, model, *_ = setting
    [batch] = batches(setting, 100)
    with torch.no_grad():
        losses = model.losses(model(batch), batch)
    found = scored(setting, collect_outputs(model, task_heads(model), [batch])[0])
    assert found["answer/loss"] == pytest.approx(float(losses.tasks["answer"]) / batch.batch_size, rel=1e-5)


def test_workers_merge_and_fillers_do_not_count(setting: Any) -> None:
    job, model, preprocessor, samples = setting
    heads = task_heads(model)
    [merged] = collect_outputs(model, heads, batches(setting, 4, 0, 2))
    filler = collate([], preprocessor.modalities, add_dummies=True)
    filler = Batch(filler.inputs, {name: torch.zeros(1) for name in job.tasks}, filler.weights)
    merged.merge(collect_outputs(model, heads, [*batches(setting, 4, 1, 2), filler])[0])
    assert merged.num_samples == len(samples)
    alone = scored(setting, collect_outputs(model, heads, batches(setting, 100))[0])
    assert scored(setting, merged) == pytest.approx(alone, rel=1e-5)
    assert scored(
        setting, collect_outputs(model, heads, [*batches(setting, 100), filler])[0]
    ) == pytest.approx(alone)


def test_a_subset_scores_as_rows_without_the_other_inputs(setting: Any) -> None:
    from rayfuse.data.samples import Sample

    job, model, preprocessor, samples = setting
    heads = task_heads(model)
    chosen = nonempty_subsets(list(job.inputs))
    by_subset = collect_outputs(model, heads, batches(setting, 7), chosen)
    for names, outputs in zip(chosen, by_subset, strict=True):
        left = [
            Sample({n: f for n, f in s.features.items() if n in names}, s.keys, s.targets) for s in samples
        ]
        alone = collect_outputs(model, heads, [collate(left, preprocessor.modalities)])[0]
        assert scored(setting, outputs) == pytest.approx(scored(setting, alone), rel=1e-4)
    as_they_are = collect_outputs(model, heads, batches(setting, 7))[0]
    assert scored(setting, by_subset[0]) == pytest.approx(scored(setting, as_they_are), rel=1e-5)


def test_outputs_cross_processes(setting: Any, tmp_path: Path) -> None:
    import pickle

    _, model, *_ = setting
    [outputs] = collect_outputs(model, task_heads(model), batches(setting, 9))
    back = pickle.loads(pickle.dumps(outputs))
    assert scored(setting, back) == scored(setting, outputs)
