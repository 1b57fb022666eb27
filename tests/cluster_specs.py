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
        "submission.active_deadline: must be at least 60, not '0s'",
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
    "an older Ray": ({"ray_version": "2.40.0"}, "ray_version: '2.40.0' is not the version of Ray that Rayfuse requires; write that of the image"),
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
    "a newer Ray": ({"ray_version": "3.0.0"}, "ray_version: '3.0.0' is not the version of Ray that Rayfuse requires"),
    "an image in capitals": (
        {"image": "registry.example/Rayfuse:0.1"},
        "image: 'registry.example/Rayfuse:0.1' is not an image; write REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST",
    ),
    "an image with two tags": ({"image": "rayfuse:0.1:0.2"}, "image: 'rayfuse:0.1:0.2' is not an image"),
    "an image as a URL": (
        {"image": "https://registry.example/rayfuse:0.1"},
        "image: 'https://registry.example/rayfuse:0.1' is not an image: it is a URL; leave out https://",
    ),
    "an image with a slash at its end": ({"image": "registry.example/rayfuse/"}, "image: 'registry.example/rayfuse/' is not an"),
    "an image with a short digest": ({"image": "rayfuse@sha256:abc"}, "image: 'rayfuse@sha256:abc' is not an image"),
    "an image with a long tag": ({"image": f"rayfuse:{'a' * 129}"}, "image: 'rayfuse:aaa"),
    "an image with a long name": ({"image": "a" * 256}, "image: 'aaa"),
    "an empty image": ({"image": ""}, "image: '' is not an image"),
    "a namespace of Kubernetes": (
        {"namespace": "kube-system"},
        "namespace: 'kube-system' is not a namespace for jobs: it is Kubernetes' own; use another",
    ),
    "a part of a millicore": ({"head.cpu": "0.0001"}, "head.cpu: '0.0001' is not a number of CPUs: Kubernetes counts in steps of 1m"),
    "half a millicore": ({"head.cpu": "1.5m"}, "head.cpu: '1.5m' is not a number of CPUs: Kubernetes counts in steps of 1m"),
    "more CPUs than a node has": ({"head.cpu": 10**5}, "head.cpu: 100000 is not a number of CPUs that a node has"),
    "memory in thousandths of bytes": ({"head.memory": "400m"}, "head.memory: '400m' is not a quantity of Kubernetes"),
    "no memory": ({"head.memory": "0Gi"}, "head.memory: '0Gi' is not enough for a Ray node; write 512Mi or more"),
    "memory for no Ray": ({"workers.cpu.memory": "100Mi"}, "workers.cpu.memory: '100Mi' is not enough for a Ray node"),
    "memory of no node": ({"workers.cpu.memory": "10Pi"}, "workers.cpu.memory: '10Pi' is not an amount that a node has"),
    "an unknown option": ({"head.ray": {"nope": 1}}, "head.ray.nope: not an option of `ray start`; one of: cgroup-path, "),
    "a misspelled option": (
        {"head.ray": {"object-store-memry": 10**9}},
        "head.ray.object-store-memry: not an option of `ray start`; did you mean object-store-memory?",
    ),
    "a port above all": ({"head.ray": {"port": 70000}}, "head.ray.port: 70000 is not a port; write a number up to 65535"),
    "endless CPUs": ({"head.cpu": "9" * 500}, "head.cpu: '9999"),
    "endless memory": ({"head.memory": "9" * 500}, "head.memory: '9999"),
    "an endless port": ({"head.ray": {"port": "9" * 5000}}, "head.ray.port: 9999"),
    "endless brackets": ({"head.ray": {"resources": "[" * 100_000}}, "head.ray.resources: not a mapping in JSON"),
    "an object store with a unit": (
        {"head.ray": {"object-store-memory": "2Gi"}},
        "head.ray.object-store-memory: 2Gi is not a number of bytes; write an integer without a unit",
    ),
    "an object store that is too small": (
        {"head.ray": {"object-store-memory": 1000}},
        "head.ray.object-store-memory: 1000 bytes are too few for Ray; write 78643200 or more",
    ),
    "an option with words of a shell": (
        {"head.ray": {"node-name": "a; reboot"}},
        "head.ray.node-name: a; reboot has characters with a meaning to the shell that starts Ray",
    ),
    "resources as words": ({"head.ray": {"resources": "tape=1"}}, "head.ray.resources: not a mapping in JSON"),
    "a flag that is neither": ({"head.ray": {"include-dashboard": "yes"}}, "head.ray.include-dashboard: yes is neither true nor false"),
    "a selector's value with a space": (
        {"workers.cpu.node_selector": {"pool": "gpu nodes"}},
        "workers.cpu.node_selector.pool: 'gpu nodes' is not a value of a label; write at most 63 letters",
    ),
    "a selector's value that is true": ({"head.node_selector": {"gpu": True}}, "head.node_selector.gpu: must be a string, not true"),
    "a selector's key with two slashes": (
        {"head.node_selector": {"a/b/c": "x"}},
        "head.node_selector.a/b/c: 'a/b/c' is not a key of a label; write NAME or DOMAIN/NAME",
    ),
    "a taint's key with a space": (
        {"head.tolerations": [{"key": "nvidia com/gpu", "operator": "Exists"}]},
        "head.tolerations.0.key: 'nvidia com/gpu' is not a key of a label",
    ),
    "a taint's value with a space": (
        {"head.tolerations": [{"key": "a", "value": "b c"}]},
        "head.tolerations.0.value: 'b c' is not a value of a label",
    ),
    "an unknown effect": (
        {"head.tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedul"}]},
        "head.tolerations.0.effect: 'NoSchedul' is not one of: NoSchedule, PreferNoSchedule, NoExecute",
    ),
    "a volume over the home folder": (
        {"volumes.h": {"pvc": "x", "path": "/home"}},
        "volumes.h.path: '/home' is not a free folder: /home/ray is the home folder of the user that runs Ray; use another",
    ),
    "a volume over Python": ({"volumes.h": {"pvc": "x", "path": "/opt/venv"}}, "volumes.h.path: '/opt/venv' is not a free folder"),
    "a volume over shared memory": ({"volumes.h": {"pvc": "x", "path": "/dev/shm"}}, "volumes.h.path: '/dev/shm' is not a free"),
    "a volume in Ray's sessions": ({"volumes.h": {"pvc": "x", "path": "/tmp/ray/a"}}, "volumes.h.path: '/tmp/ray/a' is not a free"),
    "a volume named like Rayfuse's": (
        {"volumes.rayfuse-spec": {"pvc": "x", "path": "/mnt/x"}},
        "volumes.rayfuse-spec: 'rayfuse-spec' is not a free name: every pod has a volume of it; use another",
    ),
    "a volume named like KubeRay's": ({"volumes.ray-logs": {"pvc": "x", "path": "/mnt/x"}}, "volumes.ray-logs: 'ray-logs' is not a free"),
    "two volumes at one path": (
        {"volumes": {"a": {"pvc": "a", "path": "/mnt"}, "b": {"pvc": "b", "path": "/mnt"}}},
        "volumes.a.path: /mnt lies in /mnt of volumes.b.path; mount them side by side",
    ),
    "a search path": ({"env.PATH": "/bin"}, "env.PATH: the image sets it; leave it out"),
    "a rank": ({"env.RANK": 0}, "env.RANK: Ray sets it for each worker; leave it out"),
    "visible GPUs": ({"env.CUDA_VISIBLE_DEVICES": 0}, "env.CUDA_VISIBLE_DEVICES: Kubernetes and Ray assign the GPUs; set `gpus`"),
    "a setting of endpoints": ({"env.SERVE_SOCKET_REUSE_PORT_ENABLED": 0}, "env.SERVE_SOCKET_REUSE_PORT_ENABLED: Rayfuse sets it"),
    "a variable that is too long": ({"env.BIG": "x" * 200_000}, "env.BIG: 200000 characters, and Linux passes at most 128 KiB"),
    "a variable with a line break at its end": ({"env.A": "a\n"}, "env.A: holds control characters, or a line break at its start or end"),
    "a misspelled protocol of MLflow": (
        {"env.MLFLOW_TRACKING_URI": "htp://mlflow:5000"},
        "env.MLFLOW_TRACKING_URI: htp: is no protocol of MLflow; did you mean http:?",
    ),
    "a deadline before the start": ({"submission.active_deadline": "1s"}, "submission.active_deadline: must be at least 60, not '1s'"),
    "too many retries": ({"submission.backoff_limit": 10**10}, "submission.backoff_limit: must be at most 1000, not 10000000000"),
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
