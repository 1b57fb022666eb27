"""Promotion and rollback move aliases one by one; there is always a champion, and an interrupted call can be repeated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfuse.errors import GateRejectedError, SpecError
from rayfuse.registry.promotion import promote, rollback
from rayfuse.registry.versions import aliases, get_version

Add = Callable[..., int]


class Crash(Exception):
    """Raised instead of a crash."""


class CrashingClient:
    """Client that crashes before its `steps`-th change of an alias."""

    def __init__(self, client: Any, steps: int, name: str) -> None:
        self._client, self._steps, self._name = client, steps, name
        self.seen: list[dict[str, int]] = []

    def __getattr__(self, method: str) -> Any:
        if not method.endswith("registered_model_alias"):
            return getattr(self._client, method)

        def change(*arguments: Any) -> None:
            if self._steps == 0:
                raise Crash
            self._steps -= 1
            getattr(self._client, method)(*arguments)
            self.seen.append(aliases(self._client, self._name))

        return change


def test_the_first_candidate_becomes_champion(client: Any, add_version: Add) -> None:
    add_version("first", 0.9)
    decision = promote(client, "first", {"answer/accuracy": 0.8})
    assert aliases(client, "first") == {"champion": 1}
    assert decision.decision == "promoted"
    assert decision.text().splitlines()[0] == "promoted first version 1 to champion"
    record = get_version(client, "first", 1).decision
    assert record is not None
    assert [gate["gate"] for gate in record["gates"]] == ["metric_threshold", "no_regression"]
    assert record["user"]
    assert record["time"].endswith("+00:00")


def test_the_replaced_champion_becomes_previous(client: Any, add_version: Add) -> None:
    add_version("next", 0.9)
    promote(client, "next")
    add_version("next", 0.91)
    assert promote(client, "next").champion_before == 1
    assert aliases(client, "next") == {"champion": 2, "previous": 1}


def test_a_rejection_changes_no_alias_and_is_recorded(client: Any, add_version: Add) -> None:
    add_version("rejected", 0.9)
    promote(client, "rejected")
    add_version("rejected", 0.7)
    with pytest.raises(
        GateRejectedError, match=r"failed no_regression: answer/accuracy 0\.7000 against 0\.9000"
    ) as rejected:
        promote(client, "rejected", {"answer/accuracy": 0.8})
    assert "failed metric_threshold: answer/accuracy 0.7000 is below 0.8" in str(rejected.value)
    assert rejected.value.exit_code == 3
    assert aliases(client, "rejected") == {"champion": 1, "candidate": 2}
    record = get_version(client, "rejected", 2).decision
    assert record is not None
    assert record["decision"] == "rejected"


def test_force_is_recorded_as_force(client: Any, add_version: Add) -> None:
    add_version("forced", 0.9)
    promote(client, "forced")
    add_version("forced", 0.1)
    decision = promote(client, "forced", {"answer/unknown": 0.8}, force=True)
    assert decision.decision == "forced"
    assert "not evaluated" in decision.text()
    assert aliases(client, "forced") == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_interrupted_promotion_can_be_repeated(client: Any, add_version: Add, steps: int) -> None:
    name = f"cut{steps}"
    add_version(name, 0.9)
    promote(client, name)
    add_version(name, 0.95)
    crashing: Any = CrashingClient(client, steps, name)
    with pytest.raises(Crash):
        promote(crashing, name)
    assert all("champion" in seen for seen in crashing.seen)
    assert promote(client, name).version == 2
    assert aliases(client, name) == {"champion": 2, "previous": 1}


def two_champions(client: Any, add_version: Add, name: str) -> None:
    for accuracy in (0.9, 0.95):
        add_version(name, accuracy)
        promote(client, name)


def test_rollback_swaps_and_a_second_one_swaps_back(client: Any, add_version: Add) -> None:
    two_champions(client, add_version, "back")
    decision = rollback(client, "back")
    assert (decision.version, decision.champion_before) == (1, 2)
    assert aliases(client, "back") == {"champion": 1, "previous": 2}
    assert rollback(client, "back").version == 2
    assert aliases(client, "back") == {"champion": 2, "previous": 1}
    record = get_version(client, "back", 2).decision
    assert record is not None
    assert record["decision"] == "rolled_back"


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_interrupted_rollback_can_be_repeated(client: Any, add_version: Add, steps: int) -> None:
    name = f"back{steps}"
    two_champions(client, add_version, name)
    crashing: Any = CrashingClient(client, steps, name)
    with pytest.raises(Crash):
        rollback(crashing, name)
    assert all("champion" in seen for seen in crashing.seen)
    assert rollback(client, name).version == 1
    assert aliases(client, name) == {"champion": 1, "previous": 2}


def test_missing_candidates_and_champions_are_errors(client: Any, add_version: Add) -> None:
    add_version("lonely", 0.9, alias=None)
    with pytest.raises(SpecError, match="lonely has no candidate; train one"):
        promote(client, "lonely")
    with pytest.raises(SpecError, match="lonely has no champion version"):
        rollback(client, "lonely")
    add_version("single", 0.9)
    promote(client, "single")
    with pytest.raises(SpecError, match="single has no previous version"):
        rollback(client, "single")
    with pytest.raises(SpecError, match="single has no candidate; version 1 is the champion"):
        promote(client, "single")


def test_all_decisions_are_artifacts_of_the_run(client: Any, add_version: Add) -> None:
    add_version("recorded", 0.9)
    promote(client, "recorded")
    number = add_version("recorded", 0.5)
    run = get_version(client, "recorded", number).run_id
    with pytest.raises(GateRejectedError):
        promote(client, "recorded")
    promote(client, "recorded", force=True)
    files = [file.path for file in client.list_artifacts(run, "decisions")]
    assert sorted(name.rsplit("-", 1)[1] for name in files) == ["forced.json", "rejected.json"]
    record = json.loads(Path(client.download_artifacts(run, files[0])).read_text())
    assert record["name"] == "recorded"
    tags = client.get_model_version("recorded", str(number)).tags
    assert tags["rayfuse.decision"] in {file.path for file in client.list_artifacts(run, "decisions")}
    assert all(len(value) < 250 for value in tags.values())
