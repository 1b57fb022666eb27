"""A valid cluster spec, and more than twenty invalid ones with the error that each raises."""

from pathlib import Path
from typing import Any

import yaml

RIGHT: dict[str, Any] = {
    "kind": "cluster",
    "namespace": "default",
    "image": "registry.example/rayfuse:0.1",
    "head": {"cpu": 2, "memory": "8Gi"},
    "workers": {"cpu": {"min": 0, "max": 4, "cpu": 4, "memory": "16Gi"}},
    "env": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
    "secrets": {"env": ["rayfuse-credentials"]},
}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, "image: must be a string, not null"),
    "an image with a space": ({"image": "ray fuse"}, "image: 'ray fuse' is not an image; write REGISTRY/NAME:TAG"),
    "a namespace in capitals": ({"namespace": "ML"}, "namespace: 'ML' is not a name on Kubernetes"),
    "an unknown field": ({"head.cpus": 4}, "head.cpus: unknown key; did you mean cpu?"),
    "cpu in words": ({"head.cpu": "four"}, "head.cpu: 'four' is not a number of CPUs; write 4, 0.5 or 500m"),
    "no cpu at all": ({"head.cpu": 0}, "head.cpu: 0 is not a number of CPUs"),
    "memory in GB": ({"head.memory": "16GB"}, "head.memory: '16GB' is not a quantity of Kubernetes; write 512Mi"),
    "memory without a unit": ({"head.memory": 16}, "head.memory: 16 is not a usable amount: a number without a unit counts bytes"),
    "CPUs given twice": ({"head.ray": {"num-cpus": 4}}, "head.ray.num-cpus: given twice; set only `cpu`"),
    "memory given twice": (
        {"workers.cpu.ray": {"memory": 10**9}},
        "workers.cpu.ray.memory: given twice; set only `memory`",
    ),
    "GPUs given twice": (
        {"workers.cpu.gpus": 1, "workers.cpu.ray": {"num-gpus": 1}},
        "workers.cpu.ray.num-gpus: given twice; set only `gpus`",
    ),
    "labels for ray start": ({"head.ray": {"labels": "a=b"}}, "head.ray.labels: KubeRay rejects it here"),
    "an option that KubeRay sets": ({"head.ray": {"block": True}}, "head.ray.block: KubeRay sets it; leave it out"),
    "an option with two values": ({"head.ray": {"a": [1]}}, "head.ray.a: must be a string, not [1]"),
    "an accelerator without GPUs": (
        {"workers.cpu.accelerator": "H100"},
        "workers.cpu.accelerator: H100 without `gpus`; set `gpus`, or remove `accelerator`",
    ),
    "min above max": ({"workers.cpu.min": 5}, "workers.cpu.max: 4 is less than min 5"),
    "a negative min": ({"workers.cpu.min": -1}, "workers.cpu.min: must be at least 0, not -1"),
    "a group's name in capitals": (
        {"workers": {"GPU_1": {"max": 1, "cpu": 1, "memory": "1Gi"}}},
        "workers.GPU_1: 'GPU_1' is not a group name; write at most 63 of a-z, 0-9 and -",
    ),
    "a group's name that is too long": (
        {"workers": {"g" * 64: {"max": 1, "cpu": 1, "memory": "1Gi"}}},
        f"workers.{'g' * 64}: ",
    ),
    "a group named like the head": (
        {"workers": {"headgroup": {"max": 1, "cpu": 1, "memory": "1Gi"}}},
        "workers.headgroup: 'headgroup' is not a group name: KubeRay reserves it for the head",
    ),
    "an unknown submission mode": (
        {"submission.mode": "InteractiveMode"},
        "submission.mode: 'InteractiveMode' is not one of: K8sJobMode, SidecarMode, HTTPMode",
    ),
    "a time to live without shutdown": (
        {"submission.shutdown": False, "submission.ttl": "10m"},
        "submission.ttl: a time to live requires `shutdown: true`; set it, or remove `ttl`",
    ),
    "a deadline of nothing": (
        {"submission.active_deadline": "0s"},
        "submission.active_deadline: must be at least 1, not '0s'",
    ),
    "negative retries": (
        {"submission.backoff_limit": -1},
        "submission.backoff_limit: must be at least 0, not -1",
    ),
    "a queue without shutdown": (
        {"kueue_queue": "team-a", "submission.shutdown": False},
        "submission.shutdown: false, and Kueue requires clusters that end with their job",
    ),
    "a token in plain sight": (
        {"env.HF_TOKEN": "hf_hush"},
        "env.HF_TOKEN: looks like a secret, and specs are stored; put it into a Secret named in `secrets.env`",
    ),
    "a password in plain sight": ({"env.PGPASSWORD": "hush"}, "env.PGPASSWORD: looks like a secret"),
    "a password in a URL": ({"env.DATABASE": "postgresql://ann:hush@db/x"}, "env.DATABASE: looks like a secret"),
    "an invalid variable name": ({"env.MY-DATA": "/data"}, "env.MY-DATA: not a variable name"),
    "a variable that KubeRay sets": ({"env.RAY_ADDRESS": "auto"}, "env.RAY_ADDRESS: KubeRay sets it in every pod"),
    "a boolean variable": ({"env.FAST": True}, "env.FAST: must be a string, not true"),
    "a Ray without tokens": ({"ray_version": "2.40.0"}, "ray_version: '2.40.0' is not a version with token authentication"),
    "an invalid Ray version": ({"ray_version": "latest"}, "ray_version: 'latest' is not a Ray version"),
    "a Secret given twice": ({"secrets.env": ["a", "a"]}, "secrets.env.1: a is given twice"),
    "a Secret in capitals": ({"secrets.env": ["AWS"]}, "secrets.env.0: 'AWS' is not a name on Kubernetes"),
    "a volume over the spec": (
        {"volumes.etc": {"pvc": "etc", "path": "/etc/rayfuse"}},
        "volumes.etc.path: '/etc/rayfuse' is not a free folder: /etc/rayfuse/spec is where pods find the spec",
    ),
    "a volume at a relative path": (
        {"volumes.runs": {"pvc": "runs", "path": "runs"}},
        "volumes.runs.path: 'runs' is not a folder in a pod",
    ),
    "volumes in one another": (
        {"volumes": {"a": {"pvc": "a", "path": "/mnt"}, "b": {"pvc": "b", "path": "/mnt/b"}}},
        "volumes.b.path: /mnt/b lies in /mnt of volumes.a.path; mount them side by side",
    ),
    "a toleration of everything and something": (
        {"head.tolerations": [{"key": "gpu", "operator": "Exists", "value": "yes"}]},
        "head.tolerations.0.value: operator Exists takes no value",
    ),
}  # fmt: skip


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """RIGHT with other values at some paths."""
    content = yaml.safe_load(yaml.safe_dump(RIGHT))
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = content
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return content


def write(folder: Path, **changes: Any) -> Path:
    """FOLDER/cluster.yaml; `__` in a keyword stands for the dot of a path."""
    file = folder / "cluster.yaml"
    content = changed({path.replace("__", "."): value for path, value in changes.items()})
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file
