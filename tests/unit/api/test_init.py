"""`rayfuse.init`: jobs for data as it is."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import rayfuse
from rayfuse.api import init
from rayfuse.errors import SpecError

FRAME = pd.DataFrame({"size": range(40), "color": ["red", "blue"] * 20, "label": ["a", "b", "b", "a"] * 10})
FRAME["size"] = FRAME["size"] * 7 % 40 + 0.5


@pytest.mark.parametrize("data", [FRAME, FRAME.to_dict("records")])
def test_a_table_in_memory_is_a_job(data: Any) -> None:
    job = rayfuse.init(data, target="label")
    assert list(job.inputs["table"].source_columns) == ["size", "color"]
    assert job.tasks["label"].type == "classification"


def test_overrides_and_names(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    job = rayfuse.init(tmp_path / "rows.csv", ["label"], name="mine", **{"train.epochs": 3})
    assert (job.name, job.train.epochs) == ("mine", 3)


def test_a_spec_is_not_data() -> None:
    with pytest.raises(SpecError, match=r"job.yaml: a spec file, not data"):
        rayfuse.init("job.yaml", target="label")


def test_a_misspelled_parameter_is_rejected() -> None:
    with pytest.raises(SpecError, match="did you mean exclude"):
        rayfuse.init(FRAME, target="label", exclud=["size"])


def test_a_plan_that_fails_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise SpecError("no encoder")

    monkeypatch.setattr("rayfuse.api.planning.plan", fail)
    assert init.try_plan(init.draft(FRAME.to_dict("records"), "label")) is None
    assert "no plan: no encoder" in caplog.text
