"""From YAML to a validated spec: variables, overrides, paths, and errors outside the values."""

import os
from pathlib import Path

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.job import FractionSplit, Job
from rayfuse.spec.load import load_spec, parse_overrides, read_kind
from rayfuse.spec.service import Service

JOB = """\
kind: job
name: tiny
data:
  train: rows/train.jsonl
  test: s3://bucket/test.jsonl
inputs:
  image: {type: image, size: 28, encoder: {type: conv}}
  audio: {type: audio, sample_rate: 8000, encoder: {type: conv}, optional: true}
fusion: {type: concat}
tasks: {answer: {type: classification, column: label}}
output: {storage: ../runs}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(JOB)
    return path


def load_job(path: Path, *overrides: str, **environment: str) -> Job:
    return load_spec(path, Job, parse_overrides(overrides), environment)


def error_of(path: Path, text: str, *overrides: str, kind: type = Job, **environment: str) -> str:
    """Return the error message of a spec file with this text, without the path of its folder."""
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(path, kind, parse_overrides(overrides), environment)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_inputs_and_tasks_default_to_the_column_of_their_name(job_file: Path) -> None:
    job = load_job(job_file)
    assert {name: i.column for name, i in job.inputs.items()} == {"image": "image", "audio": "audio"}
    assert job.tasks["answer"].column == "label"


def test_relative_paths_are_resolved_against_the_file(job_file: Path) -> None:
    job = load_job(job_file)
    assert job.data.train == str(job_file.parent / "rows/train.jsonl")
    assert job.data.test == "s3://bucket/test.jsonl"
    assert job.output.storage == str(job_file.parents[1] / "runs")


def test_relative_paths_are_resolved_against_the_url() -> None:
    import fsspec

    with fsspec.open("memory://specs/jobs/tiny.yaml", "w") as file:
        file.write(JOB)
    job = load_spec("memory://specs/jobs/tiny.yaml", Job)
    assert job.data.train == "memory://specs/jobs/rows/train.jsonl"
    assert job.output.storage == "memory://specs/runs"
    with pytest.raises(
        SpecError, match=r"output\.storage: '\.\./\.\./\.\.' is not a path: .* above the root"
    ):
        load_spec("memory://specs/jobs/tiny.yaml", Job, {"output.storage": "../../.."})


def test_a_tilde_is_the_home_folder(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert load_job(job_file, "output.storage=~/runs").output.storage == "/home/ann/runs"


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("./minilm", "{folder}/minilm"),
        ("minilm", "minilm"),
        ("org/minilm", "org/minilm"),
        ("s3://b/m", "s3://b/m"),
    ],
)
def test_model_paths_and_hub_ids(job_file: Path, written: str, resolved: str) -> None:
    encoder = f"inputs.image.encoder={{type: huggingface, model: {written}}}"
    job = load_job(job_file, encoder)
    assert job.inputs["image"].encoder.model == resolved.format(folder=job_file.parent)


def test_variables_have_the_environments_value_or_a_default(job_file: Path) -> None:
    job_file.write_text(JOB.replace("rows/train", "${DATA:-rows}/${SPLIT}"))
    assert load_job(job_file, SPLIT="train").data.train == str(job_file.parent / "rows/train.jsonl")
    assert load_job(job_file, DATA="/d", SPLIT="all").data.train == "/d/all.jsonl"
    assert load_job(job_file, DATA="", SPLIT="all").data.train == str(job_file.parent / "rows/all.jsonl")


def test_a_variable_may_hold_a_number(job_file: Path) -> None:
    assert load_job(job_file, "train.epochs=${EPOCHS:-3}").train.epochs == 3
    assert load_job(job_file, "train.epochs=${EPOCHS:-3}", EPOCHS="5").train.epochs == 5


def test_an_unset_variable_without_default_is_an_error(job_file: Path) -> None:
    assert error_of(job_file, JOB.replace("rows/", "${DATA}/")) == (
        "tiny.yaml: data.train: the environment variable DATA is not set or empty; set it, or write ${DATA:-default}"
    )


def test_set_adds_and_replaces_nodes(job_file: Path) -> None:
    job = load_job(
        job_file,
        "train.optimizer.lr=1e-4",
        "data.validation={fraction: 0.25}",
        "fusion={type: transformer, heads: 8}",
        "inputs.audio.optional=false",
        "inputs.image.column=photo",
    )
    assert job.train.optimizer.lr == 1e-4
    assert job.data.validation == FractionSplit(fraction=0.25)
    assert job.fusion.type == "transformer"
    assert job.fusion.heads == 8
    assert not job.inputs["audio"].optional
    assert job.inputs["image"].column == "photo"


def test_set_reaches_into_lists(job_file: Path) -> None:
    listed = JOB.replace("column: label", "column: label, classes: [a, b, c]")
    job_file.write_text(listed)
    assert load_job(job_file, "tasks.answer.classes.1=z").tasks["answer"].classes == ["a", "z", "c"]
    assert error_of(job_file, listed, "tasks.answer.classes.3=z") == (
        "tiny.yaml: tasks.answer.classes.3: `tasks.answer.classes.3`: the list has 3 entries; count from 0"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set train.epochs: write --set path.to.key=value"),
        ("=3", "--set =3: write --set path.to.key=value"),
        ("name.first=x", "tiny.yaml: name.first: `name` is a value, not a mapping"),
        ("name.a.b=x", "tiny.yaml: name.a.b: `name.a`: its parent is a value, not a mapping"),
        (
            "train={epochs: 3",
            "--set train={epochs: 3: did not find expected ',' or '}'; check indentation, quotes, brackets and colons",
        ),
        ("train=&a [*a]", "--set train=&a [*a]: `*a` is inside its own anchor; write the values out"),
        (
            "name=!!python/name:os.system",
            "--set name=!!python/name:os.system: the tag `!!python/name:os.system` is not supported here; remove it",
        ),
        (
            "train.epochs=\udcff",
            "--set train.epochs=\\udcff: the character \\udcff is not allowed; remove it",
        ),
        (f"train{'.a' * 60}=1", f"tiny.yaml: train{'.a' * 27}…: a path of more than 50 keys; shorten it"),
        ("train.epochs=2026-13-45", "tiny.yaml: train.epochs: must be an integer, not '2026-13-45'"),
        ("train.epochs=yes", "tiny.yaml: train.epochs: must be an integer, not 'yes'"),
        ("train.epochs=true", "tiny.yaml: train.epochs: must be a number, not true"),
        (
            "name=${X",
            "tiny.yaml: name: `${X` is not a variable; write ${NAME}, ${NAME:-default}, or $$ for a dollar sign",
        ),
        ("train.epochs=0", "tiny.yaml: train.epochs: must be at least 1, not 0"),
        ("train.epoch=3", "tiny.yaml: train.epoch: unknown key; did you mean epochs?"),
    ],
)
def test_invalid_overrides(job_file: Path, override: str, message: str) -> None:
    assert error_of(job_file, JOB, override) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tiny.yaml: the file is empty; `rayfuse schema` lists the kinds of spec"),
        ("# only a comment\n", "tiny.yaml: the file is empty; `rayfuse schema` lists the kinds of spec"),
        ("- kind: job\n", "tiny.yaml: not a spec: expected a YAML mapping such as `kind: job`, found a list"),
        (
            "text,label\n",
            "tiny.yaml: not a spec: expected a YAML mapping such as `kind: job`, found a single value",
        ),
        (
            "kind: job\n\tname: x\n",
            "tiny.yaml:2: found a tab character that violates indentation; indent with spaces",
        ),
        ("kind: jobb\n", "tiny.yaml: kind: this command requires `job`, and 'jobb' is not a kind of spec"),
        ("name: x\n", "tiny.yaml: kind: missing; write `kind: job`"),
        ("kind: service\n", "tiny.yaml: kind: this command requires `job`, and the file is `service`"),
        (
            "kind: service\nname: ${UNSET}\n",
            "tiny.yaml: kind: this command requires `job`, and the file is `service`",
        ),
        (JOB + "name: again\n", "tiny.yaml:12: key `name` is given twice; keep one, or rename the other"),
        (
            JOB.replace("size: 28", "size: 28, size: 32"),
            "tiny.yaml:7: key `size` is given twice; keep one, or rename the other",
        ),
        ("kind: job\n? [a, b]\n: c\n", "tiny.yaml:2: a key must be text; put it in quotes"),
        ("kind: job\n2020: x\n", "tiny.yaml:2: a key must be text; put `2020` in quotes"),
        ("kind: job\n  name: x\n", "tiny.yaml:2: mapping values are not allowed"),
        (
            "kind: job\nname: !!python/name:os.system\n",
            "tiny.yaml:2: the tag `!!python/name:os.system` is not supported here; remove it",
        ),
        ("kind: [job]\n", "tiny.yaml: kind: this command requires `job`, and ['job'] is not a kind of spec"),
        (
            "kind: job\ndata: {train: ${DATA}/x}\n",
            "tiny.yaml:2: did not find expected ',' or '}'; put \"${…}\" in quotes",
        ),
        (
            "kind: job\n---\nkind: job\n",
            "tiny.yaml:2: a second document begins; write each spec into a separate file",
        ),
    ],
)
def test_files_that_are_not_specs(job_file: Path, text: str, message: str) -> None:
    assert error_of(job_file, text).startswith(message)


def test_unreadable_spec_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_bytes(JOB.replace("tiny", "größer").encode("latin-1"))
    with pytest.raises(SpecError, match=r"tiny\.yaml: not UTF-8 \(byte 18\); save it as UTF-8"):
        load_spec(path, Job)
    with pytest.raises(SpecError, match=r"absent\.yaml: no such file"):
        load_spec(tmp_path / "absent.yaml", Job)
    with pytest.raises(SpecError, match="a folder, not the YAML file of a spec"):
        load_spec(tmp_path, Job)
    with pytest.raises(SpecError, match="null byte"):
        load_spec("a\0b", Job)
    with pytest.raises(
        SpecError, match="nosuch://x/job.yaml: cannot be read: ValueError: Protocol not known"
    ):
        load_spec("nosuch://x/job.yaml", Job)
    with pytest.raises(SpecError, match="memory://absent.yaml: no such file"):
        load_spec("memory://absent.yaml", Job)


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    for source in (
        str(tmp_path / "pipe.yaml"),
        f"file://{tmp_path}/pipe.yaml",
        "/dev/zero",
        "file:///dev/zero",
    ):
        with pytest.raises(SpecError, match="a pipe or device, not the YAML file of a spec"):
            load_spec(source, Job)
    for source in (str(tmp_path / "large.yaml"), f"file://{tmp_path}/large.yaml"):
        with pytest.raises(SpecError, match="larger than 1 MB"):
            load_spec(source, Job)
    with pytest.raises(SpecError, match="a folder, not the YAML file of a spec"):
        load_spec(f"file://{tmp_path}", Job)


def test_kind_of(job_file: Path) -> None:
    assert read_kind(job_file) == "job"
    job_file.write_text("kind: jbo\n")
    with pytest.raises(SpecError, match="kind: 'jbo' is not a kind of spec; one of: job, sweep, service"):
        read_kind(job_file)


def test_merged_yaml_keys_may_be_overridden(job_file: Path) -> None:
    shared = JOB.replace("  image: {", "  image: &base {").replace(
        "  audio: {type", "  photo: {<<: *base, size: 64}\n  audio: {type"
    )
    job_file.write_text(shared)
    assert load_job(job_file).inputs["photo"].size == 64


def test_the_default_route_is_the_name_of_the_service(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("kind: service\nname: digits\nmodel: models:/digits@champion\n")
    assert load_spec(path, Service).route_prefix == "/digits"
    assert load_spec(path, Service, {"route": "/a/b"}).route_prefix == "/a/b"


def test_a_service_may_serve_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("kind: service\nname: digits\nmodel: ./exported\n")
    assert load_spec(path, Service).model == str(tmp_path / "exported")
