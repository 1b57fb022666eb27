"""A spec before it travels: what a pod would find missing is refused here, with the remedy."""

from pathlib import Path
from typing import Any

import cluster_specs
import pytest
import tiny_jobs
import yaml

from rayfuse.cluster.travel import Destination, Parcel, pack
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster
from rayfuse.spec.load import load_spec
from rayfuse.spec.space import load_sweep

SERVICE = {
    "kind": "service",
    "name": "tiny",
    "model": "models:/tiny@champion",
    "auth": {"keys": "${RAYFUSE_API_KEYS:-}"},
}


@pytest.fixture
def job() -> dict[str, Any]:
    """A job that can travel."""
    content = tiny_jobs.job_content(Path("/data"))
    content["output"]["storage"] = "s3://bucket/runs"
    return content


def send(folder: Path, content: dict[str, Any], *overrides: str, **cluster: Any) -> Parcel:
    spec = folder / f"{content['kind']}.yaml"
    spec.write_text(yaml.safe_dump(content, sort_keys=False))
    file = cluster_specs.write(folder, **cluster)
    return pack(str(spec), overrides, Destination.kubernetes(load_spec(file, Cluster), "k8s/c.yaml"))


def refusal(folder: Path, content: dict[str, Any], *overrides: str, **cluster: Any) -> str:
    with pytest.raises(SpecError) as caught:
        send(folder, content, *overrides, **cluster)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_spec_travels_as_it_was_written(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"]["train"] = "${DATA:-../data}/train.jsonl"
    parcel = send(tmp_path, job, "train.epochs=7", env__DATA="s3://bucket/data")
    sent = yaml.safe_load(parcel.files["job.yaml"])
    assert sent == job | {"train": job["train"] | {"epochs": 7}}
    assert parcel.job
    assert parcel.job.data.train == "s3://bucket/data/train.jsonl"
    assert (parcel.kind, parcel.name, parcel.file) == ("job", "tiny", "job.yaml")


def test_another_content_is_another_digest(tmp_path: Path, job: dict[str, Any]) -> None:
    first, again, other = send(tmp_path, job), send(tmp_path, job), send(tmp_path, job, "train.epochs=7")
    assert first.digest == again.digest != other.digest


def test_this_machines_variables_do_not_count(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKET", "s3://mine")
    job["data"]["train"] = "${BUCKET}/train.jsonl"
    assert refusal(tmp_path, job) == (
        "job.yaml: data.train: the environment variable BUCKET is not set or empty; set it, or write "
        "${BUCKET:-default} (it will run with the variables of `env` of k8s/c.yaml, not those of this machine)"
    )
    parcel = send(tmp_path, job, env__BUCKET="s3://theirs")
    assert parcel.job
    assert parcel.job.data.train == "s3://theirs/train.jsonl"


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
        ("output.tracking", "mlflow.db"),
    ],
)
def test_paths_of_this_machine_are_refused(
    tmp_path: Path, job: dict[str, Any], path: str, value: Any
) -> None:
    *parents, last = path.split(".")
    node = job
    for key in parents:
        node = node[key]
    node[last] = value
    message = refusal(tmp_path, job)
    shown, path = (value["model"], f"{path}.model") if isinstance(value, dict) else (value, path)
    assert message.startswith(f"job.yaml: {path}: {shown!r} is on this machine")
    assert "DATA in `env` of k8s/c.yaml" in message


def test_every_path_of_this_machine_is_named(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"] |= {"train": "a.jsonl", "test": "b.jsonl"}
    assert [line.split(": ")[1] for line in refusal(tmp_path, job).splitlines()] == [
        "data.train",
        "data.test",
    ]


@pytest.mark.parametrize("storage", ["/runs", "/mnt/runs-too", "file:///mnt/other", "memory://runs"])
def test_results_must_not_go_with_a_pod(tmp_path: Path, job: dict[str, Any], storage: str) -> None:
    job["output"]["storage"] = storage
    message = refusal(tmp_path, job, volumes__runs={"claim": "runs", "path": "/mnt/runs"})
    assert message == (
        f"job.yaml: output.storage: {storage} is in a pod and goes with it; write a URL, or a path on one of the "
        "`volumes` of k8s/c.yaml"
    )


@pytest.mark.parametrize("storage", ["/mnt/runs", "/mnt/runs/mine", "file:///mnt/runs/mine", "gs://b/runs"])
def test_results_may_lie_on_a_volume_or_elsewhere(tmp_path: Path, job: dict[str, Any], storage: str) -> None:
    job["output"]["storage"] = storage
    send(tmp_path, job, volumes__runs={"claim": "runs", "path": "/mnt/runs"})


def test_a_registry_must_not_go_with_a_pod(tmp_path: Path, job: dict[str, Any]) -> None:
    message = refusal(tmp_path, job, env={}, secrets={})
    assert message.startswith("job.yaml: output.tracking: missing, and so is MLFLOW_TRACKING_URI in `env`")
    message = refusal(tmp_path, job, env__MLFLOW_TRACKING_URI="sqlite:////tmp/mlflow.db")
    assert message.startswith("job.yaml: output.tracking: sqlite:////tmp/mlflow.db is in a pod")
    send(tmp_path, job, env={})  # the Secret may have it
    job["output"]["tracking"] = "https://mlflow.example"
    send(tmp_path, job, env={}, secrets={})


def test_a_service_travels_without_its_keys(tmp_path: Path) -> None:
    parcel = send(tmp_path, SERVICE)
    assert "${RAYFUSE_API_KEYS:-}" in parcel.files["service.yaml"]
    assert parcel.service
    assert parcel.service.prefix == "/tiny"


@pytest.mark.parametrize("keys", ["hush-hush", ["hush-hush"], "${RAYFUSE_API_KEYS:-hush-hush}"])
def test_keys_do_not_travel(tmp_path: Path, keys: Any) -> None:
    message = refusal(tmp_path, SERVICE | {"auth": {"keys": keys}})
    assert message.startswith(
        'service.yaml: auth.keys: keys must not travel in a spec; write keys: "${RAYFUSE_API'
    )
    assert "hush" not in message


@pytest.mark.parametrize(("auth", "secrets"), [({}, ["s"]), ({"keys": "${RAYFUSE_API_KEYS:-}"}, [])])
def test_an_endpoint_of_a_cluster_needs_keys(tmp_path: Path, auth: Any, secrets: list[str]) -> None:
    message = refusal(tmp_path, SERVICE | {"auth": auth}, secrets__env=secrets)
    assert message.startswith("service.yaml: auth.keys: none, and a cluster's endpoint is open to others")
    assert "into a Secret that `secrets.env` of k8s/c.yaml names" in message


def test_a_url_with_credentials_does_not_travel(tmp_path: Path, job: dict[str, Any]) -> None:
    job["data"]["train"] = "s3://AKIA:hush@bucket/rows"
    message = refusal(tmp_path, job)
    assert message.startswith("job.yaml: data.train: holds credentials")
    assert "hush" not in message


def test_a_cluster_is_not_submitted(tmp_path: Path) -> None:
    message = refusal(tmp_path, cluster_specs.RIGHT)
    assert message == "cluster.yaml: kind: a cluster cannot be submitted; one of: job, sweep, service"


SWEEP = {
    "kind": "sweep",
    "name": "search",
    "job": "jobs/tiny.yaml",
    "metric": "answer/accuracy",
    "space": {
        "train.optimizer.lr": {"loguniform": [1.0e-4, 1.0e-2]},
        "compute.workers": {"choice": [1, 3, 2]},
    },
    "trial": {"train.epochs": 1},
    "concurrency": 5,
}


@pytest.fixture
def swept(tmp_path: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The job of SWEEP, in its file."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(job))
    return job


def test_a_sweep_takes_its_job_along(tmp_path: Path, swept: dict[str, Any]) -> None:
    parcel = send(tmp_path, SWEEP)
    assert yaml.safe_load(parcel.files["sweep.yaml"]) == SWEEP | {"job": "job.yaml"}
    assert yaml.safe_load(parcel.files["job.yaml"]) == swept
    assert parcel.job
    assert parcel.job.compute.workers == 3, "the largest trial"
    assert parcel.trials == 5
    assert send(tmp_path, {**SWEEP, "concurrency": None}, "search={type: random, trials: 7}").trials == 7


def test_what_travels_is_a_sweep_again(tmp_path: Path, swept: dict[str, Any]) -> None:
    pod = tmp_path / "pod"
    pod.mkdir()
    for name, text in send(tmp_path, SWEEP, "concurrency=4").files.items():
        (pod / name).write_text(text)
    assert load_sweep(pod / "sweep.yaml", environment={}).sweep.concurrency == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": "answer/acuracy"}, "sweep.yaml: metric: no task reports `answer/acuracy`"),
        ({"metric": "${METRIC}"}, "sweep.yaml: metric: the environment variable METRIC is not set or empty"),
        (
            {"space": {"train.deepspeed": {"choice": ["a.json", "/b.json"]}}},
            "sweep.yaml: space: train.deepspeed: 'a.json' is on this machine",
        ),
    ],
)
def test_a_wrong_sweep_does_not_travel(
    tmp_path: Path, swept: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    assert refusal(tmp_path, SWEEP | changes).startswith(says)


def test_the_job_of_a_sweep_is_checked_too(tmp_path: Path, swept: dict[str, Any]) -> None:
    swept["data"]["train"] = "rows.jsonl"
    (tmp_path / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(swept))
    assert refusal(tmp_path, SWEEP).startswith("jobs/tiny.yaml: data.train: 'rows.jsonl' is on this machine")
