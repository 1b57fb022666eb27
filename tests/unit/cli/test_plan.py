"""`rayfuse plan`: what people and programs get."""

import json
from pathlib import Path

import pytest
import tiny_jobs

from rayfuse.cli import main
from rayfuse.cli.plan import size
from rayfuse.train.plan import baseline, cards


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(baseline, "measure", lambda: 500_000_000)
    monkeypatch.setattr(cards, "this_cpu", lambda threads: 1e9)
    text = {"type": "text", "max_tokens": 8, "encoder": {"type": "conv", "width": 4}}
    tiny_jobs.tiny_job(tmp_path)
    content = {**tiny_jobs.job_content(tmp_path), "inputs": {"text": text}}
    path = tmp_path / "plain.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def test_people_see_tables_and_a_picture(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", job, "--batch", "32", "--length", "text=4"]) == 0
    shown = capsys.readouterr().out
    assert "encoder text" in shown
    assert "the job as it stands: 1 worker, ZeRO stage 2, 32 rows at a time" in shown
    assert "█" in shown
    assert "smallest that fits: 1 worker, ZeRO stage 0" in shown
    assert "--set train.deepspeed.stage=0" in shown
    assert "time: about" in shown


def test_programs_get_bytes(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "2", "--gpu-memory", "24GB", "--rows", "100", "--json"]
    assert main(["plan", job, *options]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["device"] == "gpu"
    assert found["own"]["total_bytes"] == sum(found["own"]["bytes"].values())
    assert found["layouts"][0]["room_bytes"] == 24_000_000_000 - cards.GPU_RESERVE
    assert found["time"] is None
    assert found["smallest"]["fits"] is True


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--gpu-memory", "much"], "'much' is no size; write it as in 24GB or 80GiB"),
        (["--length", "text"], "'text': write INPUT=NUMBER, as in text=128"),
        (["--gpus", "2"], "--gpus: how large are they?"),
        (["--length", "text=9"], "allows more than 0 and up to 8"),
    ],
)
def test_options_that_are_refused(
    options: list[str], problem: str, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", job, "--rows", "10", *options]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (55_800, "55.8 kB"), (24e6, "24 MB"), (1.5e9, "1.50 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
