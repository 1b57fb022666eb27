"""`kind: cluster`: what is taken, and what only KubeRay's operator would find wrong."""

import json
from typing import Any

import pytest
from cluster_specs import RIGHT, WRONG, changed

from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster, cores, looks_secret
from rayfuse.spec.load import check


def cluster(**changes: Any) -> Cluster:
    return check(
        changed({key.replace("__", "."): value for key, value in changes.items()}), Cluster, "c.yaml"
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_named_with_its_path_and_remedy(wrong: str) -> None:
    changes, says = WRONG[wrong]
    with pytest.raises(SpecError) as caught:
        check(changed(changes), Cluster, "c.yaml")
    assert str(caught.value).startswith(f"c.yaml: {says}")
    assert "hush" not in str(caught.value)


def test_there_are_enough_mistakes() -> None:
    assert len(WRONG) >= 20
    check(RIGHT, Cluster, "c.yaml")


def test_numbers_and_texts_are_the_same_quantities() -> None:
    spec = cluster(head__cpu=0.5, head__memory=17179869184, env__OMP_NUM_THREADS=4)
    assert (spec.head.cpu, spec.head.memory, spec.env["OMP_NUM_THREADS"]) == ("0.5", "17179869184", "4")
    assert cores(cluster(head__cpu="500m").head.cpu) == cores(spec.head.cpu) == 0.5
    assert check(json.loads(spec.model_dump_json()), Cluster, "stored") == spec


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "SSL_CERT_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "DATA",
     "GOOGLE_APPLICATION_CREDENTIALS", "KEYBOARD"],
)  # fmt: skip
def test_a_variable_that_is_no_secret(name: str) -> None:
    assert not looks_secret(name)
    assert cluster(**{f"env__{name}": "/x"}).env[name] == "/x"


@pytest.mark.parametrize(
    "name",
    ["RAYFUSE_API_KEYS", "RAYFUSE_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "APIKEY", "hf_token",
     "WANDB_API_KEY"],
)  # fmt: skip
def test_a_variable_that_looks_like_a_secret(name: str) -> None:
    assert looks_secret(name)


def test_a_cluster_needs_no_workers() -> None:
    assert cluster(workers={}).workers == {}
