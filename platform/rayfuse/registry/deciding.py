"""Make a candidate the champion, or the champion the previous one again, with a record of who decided it and why.

Aliases move one at a time, in an order in which a champion exists at every moment. A command that was cut off can be
repeated: it goes on where it stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rayfuse import __version__
from rayfuse.errors import GateRefused, RayfuseError, SpecError
from rayfuse.model.folder import read_job
from rayfuse.registry.evaluate import evaluate_folder, judged_rows
from rayfuse.registry.fetching import download
from rayfuse.registry.gates import Case, Gate, Measured, Verdict, default_gates
from rayfuse.registry.source import user
from rayfuse.registry.tracking import explained
from rayfuse.registry.versions import (
    CANDIDATE,
    CHAMPION,
    DECISION_TAG,
    PREVIOUS,
    Version,
    aliases,
    get_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ROLLING_BACK = "rolling-back"
"""Alias of the champion that is being taken back, while that lasts."""


@dataclass(frozen=True)
class Decision:
    """The record of a decision, kept with the version and in its run."""

    decision: Literal["promoted", "forced", "refused", "rolled_back"]
    name: str
    version: int
    """The version that was judged, or that is champion again."""
    champion_before: int | None
    gates: tuple[Verdict, ...] = ()
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    by: str = field(default_factory=user)
    rayfuse: str = __version__

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people: what happened, and a line per gate."""
        before = "" if self.champion_before is None else f" (before: version {self.champion_before})"
        happened = {
            "promoted": f"{self.name} version {self.version} is champion{before}",
            "forced": f"{self.name} version {self.version} is champion by force{before}",
            "refused": f"{self.name} version {self.version} stays candidate",
            "rolled_back": f"{self.name} version {self.version} is champion again{before}",
        }[self.decision]
        lines = [f"  {'passed' if v.passed else 'missed'} {v.gate}: {v.reason}" for v in self.gates]
        return "\n".join([happened, *lines])


def promote(
    client: "MlflowClient",
    name: str,
    minimum: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    gates: Sequence[Gate] | None = None,
) -> Decision:
    """Let the gates judge the candidate of `name`, and make it the champion; returns the record of the decision.

    `minimum`: bounds by metric; `tolerance`: by how much the candidate may be worse than the champion; `gates`:
    others than those two. Raises GateRefused, with every missed bound, unless forced; SpecError where there is no
    candidate.
    """
    known = aliases(client, name)
    if CANDIDATE not in known:
        champion = f"; version {known[CHAMPION]} is champion" if CHAMPION in known else ""
        raise SpecError(
            f"{name} has no candidate{champion}; train one, or set the alias `{CANDIDATE}` in MLflow"
        )
    candidate = get_version(client, name, known[CANDIDATE])
    if known.get(CHAMPION) == candidate.version:
        return _finish_promotion(client, candidate)
    champion_version = get_version(client, name, known[CHAMPION]) if CHAMPION in known else None
    case = Case(candidate, champion_version, _measure(client, candidate, champion_version, say))
    chosen = default_gates(minimum or {}, tolerance) if gates is None else gates
    verdicts = tuple(_judge(gate, case, force) for gate in chosen)
    passed = all(verdict.passed for verdict in verdicts)
    decision = Decision(
        "promoted" if passed else "forced" if force else "refused",
        name,
        candidate.version,
        None if champion_version is None else champion_version.version,
        verdicts,
    )
    _keep(client, candidate, decision)
    if decision.decision == "refused":
        raise GateRefused(decision.text())
    with explained(client.tracking_uri):
        if champion_version is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(champion_version.version))
        client.set_registered_model_alias(name, CHAMPION, str(candidate.version))
        client.delete_registered_model_alias(name, CANDIDATE)
    return decision


def rollback(client: "MlflowClient", name: str) -> Decision:
    """Make the previous champion of `name` the champion again; returns the record of the decision.

    The one that was champion becomes `previous`, so that a second rollback takes the first one back. Raises SpecError
    where there is no champion or no previous one.
    """
    known = aliases(client, name)
    for alias in (CHAMPION, PREVIOUS):
        if alias not in known:
            raise SpecError(f"{name} has no {alias} version, so there is nothing to roll back to")
    begun = _ROLLING_BACK in known
    leaving = known[_ROLLING_BACK] if begun else known[CHAMPION]
    coming = known[CHAMPION] if begun and known[CHAMPION] != leaving else known[PREVIOUS]
    if leaving == coming:
        raise SpecError(
            f"{name}: version {leaving} is both champion and previous, so there is nothing to roll back to"
        )
    decision = Decision("rolled_back", name, coming, leaving)
    _keep(client, get_version(client, name, leaving), decision)
    with explained(client.tracking_uri):
        client.set_registered_model_alias(name, _ROLLING_BACK, str(leaving))
        client.set_registered_model_alias(name, CHAMPION, str(coming))
        client.set_registered_model_alias(name, PREVIOUS, str(leaving))
        client.delete_registered_model_alias(name, _ROLLING_BACK)
    return decision


def _finish_promotion(client: "MlflowClient", candidate: Version) -> Decision:
    """The decision was taken and kept before, and only the last step of it is missing."""
    with explained(client.tracking_uri):
        client.delete_registered_model_alias(candidate.name, CANDIDATE)
    before = (candidate.decision or {}).get("champion_before")
    return Decision("promoted", candidate.name, candidate.version, before)


def _judge(gate: Gate, case: Case, force: bool) -> Verdict:
    try:
        return gate.judge(case)
    except RayfuseError as error:
        if not force:
            raise
        return Verdict(type(gate).__name__, False, f"could not judge: {error}")


def _measure(
    client: "MlflowClient", candidate: Version, champion: Version | None, say: Callable[[str], None]
) -> Callable[[], Measured] | None:
    """A way to measure the champion on the rows that the candidate was judged on."""
    if champion is None:
        return None

    def measure() -> Measured:
        say(
            f"measuring champion version {champion.version} on the rows of candidate version {candidate.version}"
        )
        folder = download(client, f"models:/{candidate.name}/{candidate.version}")
        rows = judged_rows(read_job(folder)[0], candidate.split)
        champions = download(client, f"models:/{champion.name}/{champion.version}")
        found = evaluate_folder(champions, rows=rows, warn=say)
        return Measured(found["metrics"], found["by_inputs"])

    return measure


def _keep(client: "MlflowClient", version: Version, decision: Decision) -> None:
    """Write a decision to the version (the last one) and to the run that made it (all of them)."""
    record = decision.plain()
    with explained(client.tracking_uri):
        client.set_model_version_tag(version.name, str(version.version), DECISION_TAG, json.dumps(record))
        if version.run_id:
            stamp = decision.time.replace(":", "").replace("+0000", "Z")
            file = f"decisions/{stamp}-version-{version.version}-{decision.decision}.json"
            client.log_text(version.run_id, json.dumps(record, indent=1), file)
