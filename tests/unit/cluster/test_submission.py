"""Validation of specs before submission against the environment of the pods."""

from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.cluster.submission import SubmissionBundle, TargetEnvironment, build_bundle
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import load_spec, parse_overrides
from rayfuse.spec.search_space import load_sweep

SERVICE = {
    "kind": "service",
    "name": "tiny",
    "model": "models:/tiny@champion",
    "auth": {"keys": "${RAYFUSE_API_KEYS:-}"},
}


@pytest.fixture
def job() -> dict[str, Any]:
    """Return a job that can be submitted."""
    content = tiny_jobs.job_content(Path("/data"))
    content["output"]["storage"] = "s3://bucket/runs"
    return content


def send(folder: Path, content: dict[str, Any], *overrides: str, **cluster: Any) -> SubmissionBundle:
    spec = folder / f"{content['kind']}.yaml"
    spec.write_text(yaml.safe_dump(content, sort_keys=False))
    file = cluster_specs.write(folder, **cluster)
    return build_bundle(
        str(spec),
        parse_overrides(overrides),
        TargetEnvironment.kubernetes(load_spec(file, Cluster), "k8s/c.yaml"),
    )


def refusal(folder: Path, content: dict[str, Any], *overrides: str, **cluster: Any) -> str:
    with pytest.raises(SpecError) as caught:
        send(folder, content, *overrides, **cluster)
    return str(caught.value).replace(f"{folder}/", "")


def test_specs_are_sent_as_written(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"]["train"] = "${DATA:-../data}/train.jsonl"
    bundle = send(tmp_path, job, "train.epochs=7", env__DATA="s3://bucket/data")
    sent = yaml.safe_load(bundle.files["job.yaml"])
    assert sent == job | {"train": job["train"] | {"epochs": 7}}
    assert bundle.job
    assert bundle.job.data.train == "s3://bucket/data/train.jsonl"
    assert (bundle.kind, bundle.name, bundle.spec_file) == ("job", "tiny", "job.yaml")


def test_digests_depend_on_the_content(tmp_path: Path, job: dict[str, Any]) -> None:
    first, again, other = send(tmp_path, job), send(tmp_path, job), send(tmp_path, job, "train.epochs=7")
    assert first.digest == again.digest != other.digest


def test_variables_of_this_machine_are_not_used(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET", "s3://mine")
    job["data"]["train"] = "${BUCKET}/train.jsonl"
    assert refusal(tmp_path, job) == (
        "job.yaml: data.train: the environment variable BUCKET is not set or empty; set it, or write "
        "${BUCKET:-default} (variables come from `env` of k8s/c.yaml, not from this machine's environment)"
    )
    bundle = send(tmp_path, job, env__BUCKET="s3://theirs")
    assert bundle.job
    assert bundle.job.data.train == "s3://theirs/train.jsonl"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.train", "../data/train.jsonl"),
        ("data.test", "${DATA:-../data}/test.jsonl"),
        ("data.train", "~/train.jsonl"),
        ("data.validation", "../../../../../../v.jsonl"),
        ("inputs.text.encoder", {"type": "huggingface", "model": "./minilm"}),
        ("train.deepspeed", "ds.json"),
        ("output.storage", "../runs"),
        ("output.tracking_uri", "mlflow.db"),
    ],
)
def test_paths_of_this_machine_are_rejected(
    tmp_path: Path, job: dict[str, Any], path: str, value: Any
) -> None:
    *parents, last = path.split(".")
    node = job
    for key in parents:
        node = node[key]
    node[last] = value
    message = refusal(tmp_path, job)
    shown, path = (value["model"], f"{path}.model") if isinstance(value, dict) else (value, path)
    assert message.startswith(f"job.yaml: {path}: {shown!r} is a path of this machine")
    assert "DATA in `env` of k8s/c.yaml" in message


def test_every_path_of_this_machine_is_named(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"] |= {"train": "a.jsonl", "test": "b.jsonl"}
    assert [line.split(": ")[1] for line in refusal(tmp_path, job).splitlines()] == [
        "data.train",
        "data.test",
    ]


@pytest.mark.parametrize("storage", ["/runs", "/mnt/runs-too", "file:///mnt/other", "memory://runs"])
def test_storage_in_a_pod_is_rejected(tmp_path: Path, job: dict[str, Any], storage: str) -> None:
    job["output"]["storage"] = storage
    message = refusal(tmp_path, job, volumes__runs={"pvc": "runs", "path": "/mnt/runs"})
    assert message == (
        f"job.yaml: output.storage: {storage} is deleted with the pod; use a URL, or a path on one of the "
        "`volumes` of k8s/c.yaml"
    )


@pytest.mark.parametrize("storage", ["/mnt/runs", "/mnt/runs/mine", "file:///mnt/runs/mine", "gs://b/runs"])
def test_storage_on_a_volume_or_url(tmp_path: Path, job: dict[str, Any], storage: str) -> None:
    job["output"]["storage"] = storage
    send(tmp_path, job, volumes__runs={"pvc": "runs", "path": "/mnt/runs"})


def test_an_mlflow_database_in_a_pod_is_rejected(tmp_path: Path, job: dict[str, Any]) -> None:
    message = refusal(tmp_path, job, env={}, secrets={})
    assert message.startswith(
        "job.yaml: output.tracking_uri: missing, and MLFLOW_TRACKING_URI is not set in `env`"
    )
    message = refusal(tmp_path, job, env__MLFLOW_TRACKING_URI="sqlite:////tmp/mlflow.db")
    assert message.startswith(
        "job.yaml: output.tracking_uri: sqlite:////tmp/mlflow.db is deleted with the pod"
    )
    send(tmp_path, job, env={})  # the Secret may have it
    job["output"]["tracking_uri"] = "https://mlflow.example"
    send(tmp_path, job, env={}, secrets={})


def test_services_are_sent_without_keys(tmp_path: Path) -> None:
    bundle = send(tmp_path, SERVICE)
    assert "${RAYFUSE_API_KEYS:-}" in bundle.files["service.yaml"]
    assert bundle.service
    assert bundle.service.route_prefix == "/tiny"


@pytest.mark.parametrize(
    "keys", ["hush-hush-hush-hush", ["hush-hush-hush-hush"], "${RAYFUSE_API_KEYS:-hush-hush-hush-hush}"]
)
def test_keys_in_the_spec_are_rejected(tmp_path: Path, keys: Any) -> None:
    message = refusal(tmp_path, SERVICE | {"auth": {"keys": keys}})
    assert message.startswith(
        'service.yaml: auth.keys: API keys must not be part of a submitted spec; set keys: "${RAYFUSE_API'
    )
    assert "hush" not in message


@pytest.mark.parametrize(("auth", "secrets"), [({}, ["s"]), ({"keys": "${RAYFUSE_API_KEYS:-}"}, [])])
def test_an_endpoint_of_a_cluster_needs_keys(tmp_path: Path, auth: Any, secrets: list[str]) -> None:
    message = refusal(tmp_path, SERVICE | {"auth": auth}, secrets__env=secrets)
    assert message.startswith(
        "service.yaml: auth.keys: missing, and the endpoint is reachable from other machines"
    )
    assert "in a Secret listed under `secrets.env` of k8s/c.yaml" in message


def test_urls_with_credentials_are_rejected(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"]["train"] = "s3://AKIA:hush@bucket/rows"
    message = refusal(tmp_path, job)
    assert message.startswith("job.yaml: data.train: contains credentials")
    assert "hush" not in message


def test_cluster_specs_cannot_be_submitted(tmp_path: Path) -> None:
    message = refusal(tmp_path, cluster_specs.RIGHT)
    assert message == "cluster.yaml: kind: cluster cannot be submitted; use one of: job, sweep, service"


SWEEP = {
    "kind": "sweep",
    "name": "search",
    "job": "jobs/tiny.yaml",
    "metric": "answer/accuracy",
    "space": {
        "train.optimizer.lr": {"loguniform": [1.0e-4, 1.0e-2]},
        "compute.workers": {"choice": [1, 3, 2]},
    },
    "trial_overrides": {"train.epochs": 1},
    "concurrency": 5,
}


@pytest.fixture
def swept(tmp_path: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job of SWEEP, in its file."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(job))
    return job


def test_a_sweep_is_sent_with_its_job(tmp_path: Path, swept: dict[str, Any]) -> None:
    bundle = send(tmp_path, SWEEP)
    assert yaml.safe_load(bundle.files["sweep.yaml"]) == SWEEP | {"job": "job.yaml"}
    assert yaml.safe_load(bundle.files["job.yaml"]) == swept
    assert bundle.job
    assert bundle.job.compute.workers == 3, "the largest trial"
    assert bundle.concurrent_trials == 5
    assert (
        send(tmp_path, {**SWEEP, "concurrency": None}, "search={type: random, trials: 7}").concurrent_trials
        == 7
    )


def test_a_sent_sweep_is_valid(tmp_path: Path, swept: dict[str, Any]) -> None:
    pod = tmp_path / "pod"
    pod.mkdir()
    for name, text in send(tmp_path, SWEEP, "concurrency=4").files.items():
        (pod / name).write_text(text)
    assert load_sweep(pod / "sweep.yaml", environment={}).sweep.concurrency == 4


@pytest.mark.parametrize(
    ("changes", "expected_message"),
    [
        ({"metric": "answer/acuracy"}, "sweep.yaml: metric: no task reports `answer/acuracy`"),
        ({"metric": "${METRIC}"}, "sweep.yaml: metric: the environment variable METRIC is not set or empty"),
        (
            {"space": {"train.deepspeed": {"choice": ["a.json", "/b.json"]}}},
            "sweep.yaml: space: train.deepspeed: 'a.json' is a path of this machine",
        ),
    ],
)
def test_invalid_sweeps_are_not_sent(
    tmp_path: Path, swept: dict[str, Any], changes: dict[str, Any], expected_message: str
) -> None:
    assert refusal(tmp_path, SWEEP | changes).startswith(expected_message)


def test_the_job_of_a_sweep_is_validated(tmp_path: Path, swept: dict[str, Any]) -> None:
    swept["data"]["train"] = "rows.jsonl"
    (tmp_path / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(swept))
    assert refusal(tmp_path, SWEEP).startswith(
        "jobs/tiny.yaml: data.train: 'rows.jsonl' is a path of this machine"
    )


@pytest.mark.parametrize(
    ("path", "url", "problem"),
    [
        (
            "output.storage",
            "s4://bucket/runs",
            "'s4://bucket/runs' has the unknown protocol s4; did you mean s3?",
        ),
        (
            "data.train",
            "${DATA:-qqqq://bucket}/rows.jsonl",
            "'qqqq://bucket/rows.jsonl' has the unknown protocol qqqq; use one of fsspec, such as s3, ",
        ),
    ],
)
def test_unknown_protocols(tmp_path: Path, job: dict[str, Any], path: str, url: str, problem: str) -> None:
    assert refusal(tmp_path, job, f"{path}={url}").startswith(f"job.yaml: {path}: {problem}")


@pytest.mark.parametrize(
    "url", ["gs://b/rows.jsonl", "hf://datasets/a/b.csv", "postgresql+psycopg://db/x?table=rows"]
)
def test_protocols_of_stores_and_databases(tmp_path: Path, job: dict[str, Any], url: str) -> None:
    assert send(tmp_path, job, f"data.train={url}").job
