"""`kind: cluster`: valid values, and values that only KubeRay's operator would reject."""

import json
from typing import Any

import pytest
from cluster_specs import RIGHT, WRONG, changed

from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster, is_secret_name, parse_cpu
from rayfuse.spec.load import validate_spec


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
