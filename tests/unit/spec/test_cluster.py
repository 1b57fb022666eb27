"""`kind: cluster`: valid values, and values that only KubeRay's operator would reject."""

import json
from typing import Any

import pytest
from cluster_specs import RIGHT, WRONG, changed

from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.kubernetes import parse_cpu, parse_memory
from rayfuse.spec.load import validate_spec
from rayfuse.spec.pods import is_secret_name


def cluster(**changes: Any) -> Cluster:
    return validate_spec(
        changed({key.replace("__", "."): value for key, value in changes.items()}), Cluster, "c.yaml"
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_have_path_and_remedy(wrong: str) -> None:
    changes, expected = WRONG[wrong]
    with pytest.raises(SpecError) as caught:
        validate_spec(changed(changes), Cluster, "c.yaml")
    assert str(caught.value).startswith(f"c.yaml: {expected}")
    assert "hush" not in str(caught.value)


def test_at_least_twenty_errors_are_covered() -> None:
    assert len(WRONG) >= 20
    validate_spec(RIGHT, Cluster, "c.yaml")


def test_numbers_and_texts_are_the_same_quantities() -> None:
    spec = cluster(head__cpu=0.5, head__memory=17179869184, env__OMP_NUM_THREADS=4)
    assert (spec.head.cpu, spec.head.memory, spec.env["OMP_NUM_THREADS"]) == ("0.5", "17179869184", "4")
    assert parse_cpu(cluster(head__cpu="500m").head.cpu) == parse_cpu(spec.head.cpu) == 0.5
    assert validate_spec(json.loads(spec.model_dump_json()), Cluster, "stored") == spec


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "SSL_CERT_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "DATA",
     "GOOGLE_APPLICATION_CREDENTIALS", "KEYBOARD"],
)  # fmt: skip
def test_variables_that_are_not_secrets(name: str) -> None:
    assert not is_secret_name(name)
    assert cluster(**{f"env__{name}": "/x"}).env[name] == "/x"


@pytest.mark.parametrize(
    "name",
    ["RAYFUSE_API_KEYS", "RAYFUSE_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "APIKEY", "hf_token",
     "WANDB_API_KEY"],
)  # fmt: skip
def test_variables_that_appear_to_be_secrets(name: str) -> None:
    assert is_secret_name(name)


def test_a_cluster_needs_no_workers() -> None:
    assert cluster(workers={}).workers == {}


@pytest.mark.parametrize(
    "image",
    [
        "rayfuse",
        "rayfuse:0.1",
        "localhost:5000/rayfuse",
        "Registry.example:5000/team/ray-fuse_cpu.x__y:v0.1-RC_1",
        f"registry.example/rayfuse@sha256:{'0' * 64}",
        f"registry.example/rayfuse:0.1@sha256:{'0' * 64}",
        "[fd00::1]:5000/rayfuse:0.1",
    ],
)
def test_images(image: str) -> None:
    assert cluster(image=image).image == image


@pytest.mark.parametrize(
    ("memory", "expected"), [("1Gi", 2**30), ("1.5G", 1_500_000_000), (2**30, 2**30), ("1Ti", 2**40)]
)
def test_memory_in_bytes(memory: Any, expected: int) -> None:
    assert parse_memory(cluster(head__memory=memory).head.memory) == expected


def test_selectors_and_tolerations_with_domains_and_numbers() -> None:
    spec = cluster(
        head__node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "zone": 1, "spot": ""},
        head__tolerations=[{"key": "example.com/pool", "value": 2}],
    )
    assert spec.head.node_selector["zone"] == "1"
    assert spec.head.tolerations[0].value == "2"


def test_variables_refer_to_variables_before_them() -> None:
    env = {
        "BASE": "/mnt",
        "DATA": "$(BASE)/data",
        "PRICE": "$$(5)",
        "TEXT": "a\nb",
        "OTHERS": "$(TEAM)/x",
    }
    assert cluster(env=env).env == env


@pytest.mark.parametrize(
    ("env", "remedy"),
    [({"A": "$(NOPE)/a"}, "set it in `env`"), ({"A": "$(B)/a", "B": "/b"}, "set it above")],
)
def test_variables_that_refer_to_none_before_them(env: dict[str, str], remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        cluster(env=env, secrets={})
    used = env["A"][: -len("/a")]
    assert str(caught.value) == f"c.yaml: env.A: {used} refers to no variable that is set before; {remedy}"


def test_volumes_beside_what_pods_need() -> None:
    paths = ("/mnt/data", "/data", "/home/ann", "/usr/share/corpus", "/var/lib/runs", "/tmp/runs")
    volumes = {f"v{i}": {"pvc": "x", "path": path} for i, path in enumerate(paths)}
    assert len(cluster(volumes=volumes).volumes) == len(paths)
