"""Number of pods for a spec."""

from typing import Any

import pytest
from cluster_specs import changed

from rayfuse.cluster.sizing import PodMemory, WorkerRequirements, allocate_pods, least_memory
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import validate_spec


def group(**fields: Any) -> dict[str, Any]:
    return {"cpu": 4, "memory": "8Gi", "max": 4, **fields}


def size(
    groups: dict[str, Any], needed: int, wanted: int = 0, cpus: float = 1, gpus: float = 0
) -> dict[str, int]:
    cluster = validate_spec(changed({"workers": groups, "head.cpu": 2}), Cluster, "c.yaml")
    return allocate_pods(
        WorkerRequirements(needed, wanted or needed, cpus, gpus, "compute.workers"),
        cluster,
        "job.yaml",
        "c.yaml",
    )


@pytest.mark.parametrize(
    ("groups", "requested", "expected"),
    [
        ({"a": group()}, {"needed": 4}, {"a": 1}),
        ({"a": group()}, {"needed": 5}, {"a": 2}),
        ({"a": group(min=3)}, {"needed": 1}, {"a": 3}),
        ({"a": group(cpu="3500m")}, {"needed": 8, "cpus": 2}, {"a": 4}),
        ({"a": group(cpu="500m")}, {"needed": 1}, {"a": 1}),
        ({"a": group(cpu=2)}, {"needed": 4, "cpus": 0.5}, {"a": 1}),
        ({"a": group(cpu=0.3)}, {"needed": 10, "cpus": 0.1}, {"a": 1}),
        ({"gpu": group(gpus=2)}, {"needed": 4, "gpus": 1}, {"gpu": 2}),
        ({"gpu": group(gpus=1)}, {"needed": 4, "gpus": 0.5}, {"gpu": 2}),
        ({"gpu": group(gpus=1), "cpu": group()}, {"needed": 4}, {"gpu": 0, "cpu": 1}),
        ({"gpu": group(gpus=1), "cpu": group()}, {"needed": 2, "gpus": 1}, {"gpu": 2, "cpu": 0}),
        ({"gpu": group(gpus=1), "cpu": group(max=1)}, {"needed": 8}, {"gpu": 1, "cpu": 1}),
        ({"a": group(max=2), "b": group(max=2)}, {"needed": 12}, {"a": 2, "b": 1}),
        ({"a": group()}, {"needed": 2, "wanted": 6}, {"a": 2}),
        ({"a": group()}, {"needed": 2, "wanted": 100}, {"a": 4}),
        ({"a": group()}, {"needed": 1, "cpus": 0}, {"a": 1}),
        ({}, {"needed": 2}, {}),
    ],
)  # fmt: skip
def test_number_of_pods(groups: dict[str, Any], requested: Any, expected: dict[str, int]) -> None:
    assert size(groups, **requested) == expected


@pytest.mark.parametrize(
    ("groups", "requested", "expected_message"),
    [
        ({"a": group(max=2)}, {"needed": 9}, "9 workers with 1 CPU each do not fit into c.yaml (a: 4 "
         "in each of 2 pods); raise the `max` of a group, or request fewer"),
        ({"a": group()}, {"needed": 1, "cpus": 5}, "(a: 0 in each of 4 pods)"),
        ({"a": group()}, {"needed": 1, "gpus": 1}, "1 worker with 1 CPU and 1 GPU does not fit"),
        ({}, {"needed": 3}, "3 workers with 1 CPU each do not fit into c.yaml, whose head has capacity for 2; add a group to `workers`"),
    ],
)  # fmt: skip
def test_workers_that_do_not_fit_are_rejected(
    groups: dict[str, Any], requested: Any, expected_message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        size(groups, **requested)
    assert str(caught.value).startswith("job.yaml: compute.workers: ")
    assert expected_message in str(caught.value)


@pytest.mark.parametrize(
    ("groups", "workers", "expected"),
    [
        ({"a": group()}, 1, PodMemory("workers.a", 8 * 2**30, None)),
        ({"a": group()}, 3, PodMemory("workers.a", 8 * 2**30 // 3, None)),
        ({"a": group()}, 9, PodMemory("workers.a", 2 * 2**30, None)),
        ({"a": group(max=1), "b": group(memory="2Gi")}, 6, PodMemory("workers.b", 2**29, None)),
        ({"a": group(), "b": group(memory="1Gi")}, 6, PodMemory("workers.a", 2 * 2**30, None)),
        ({}, 2, PodMemory("head", 4 * 2**30, None)),
    ],
)
def test_the_least_memory_of_a_worker(groups: dict[str, Any], workers: int, expected: PodMemory) -> None:
    cluster = validate_spec(changed({"workers": groups, "head.cpu": 2}), Cluster, "c.yaml")
    assert least_memory(WorkerRequirements(1, workers, 1, 0, "compute.workers"), cluster) == expected
