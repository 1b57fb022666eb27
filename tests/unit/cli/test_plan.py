"""`rayfuse plan`: its report and its JSON."""

import json
from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.cli import main
from rayfuse.estimate import baseline, gpu_specs


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(baseline, "measure", lambda libraries: 500_000_000)
    monkeypatch.setattr(gpu_specs, "measure_cpu_flops", lambda threads: 1e9)
    text = {"type": "text", "max_tokens": 8, "encoder": {"type": "conv", "hidden_size": 4}}
    tiny_jobs.tiny_job(tmp_path)
    content = {**tiny_jobs.job_content(tmp_path), "inputs": {"text": text}}
    path = tmp_path / "plain.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def test_the_report_has_tables_and_bars(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", job, "--batch", "32", "--length", "text=4"]) == 0
    shown = capsys.readouterr().out
    assert "encoder text" in shown
    assert "the job as configured: 1 worker, ZeRO stage 2, 32 rows per micro-batch" in shown
    assert "█" in shown
    assert "smallest layout that fits: 1 worker, ZeRO stage 0" in shown
    assert "--set train.deepspeed.stage=0" in shown
    assert "time: about" in shown


def test_json_has_bytes(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "2", "--gpu-memory", "24GB", "--rows", "100", "--json"]
    assert main(["plan", job, *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["device"] == "gpu"
    assert found["configured"]["total_bytes"] == sum(found["configured"]["bytes"].values())
    assert found["layouts"][0]["available_bytes"] == 24_000_000_000 - gpu_specs.GPU_RESERVED_BYTES
    assert found["time"] is None
    assert found["smallest"]["fits"] is True


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--gpu-memory", "much"], "'much' is not a size; use a number with a unit, such as 24GB or 80GiB"),
        (["--length", "text"], "'text' is not INPUT=NUMBER; use a number, as in text=128"),
        (["--gpus", "2"], "gpus 2: the memory of each is missing"),
        (["--length", "text=9"], "allows more than 0 and up to 8"),
    ],
)
def test_invalid_options_are_rejected(
    options: list[str], problem: str, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", job, "--rows", "10", *options]) == 2
    assert problem in capsys.readouterr().err
