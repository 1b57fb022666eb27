"""Promotion of a candidate to champion, and rollback to the previous champion, with a record of each decision.

Aliases move one at a time, in an order in which there is always a champion. An interrupted command can be repeated: it
resumes at the alias where it stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rayfuse import __version__
from rayfuse.errors import GateRejectedError, RayfuseError, SpecError
from rayfuse.evaluation.evaluate import evaluate_folder, evaluation_rows
from rayfuse.model.model_io import load_job
from rayfuse.registry.download import download
from rayfuse.registry.gates import Gate, GateContext, GateResult, ModelMetrics, default_gates
from rayfuse.registry.mlflow_errors import translate_errors
from rayfuse.registry.run_tags import current_user
from rayfuse.registry.versions import (
    CANDIDATE,
    CHAMPION,
    DECISION_TAG,
    PREVIOUS,
    ModelVersion,
    aliases,
    get_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ROLLBACK_IN_PROGRESS = "rolling-back"
"""Alias of the champion to replace, during a rollback."""


@dataclass(frozen=True)
class PromotionRecord:
    """Record of a decision, stored as an artifact of the version's run, which a tag of the version names."""

    decision: Literal["promoted", "forced", "rejected", "rolled_back"]
    """The decision."""
    name: str
    """Registered model."""
    version: int
    """Version that the gates evaluated, or that is the champion again."""
    champion_before: int | None
    """Version of the champion before the decision."""
    gates: tuple[GateResult, ...] = ()
    """Results of the gates."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Time of the decision, in ISO format and UTC."""
    user: str = field(default_factory=current_user)
    """User who ran the command."""
    rayfuse_version: str = __version__
    """Version of Rayfuse."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return the decision and a line per gate as text."""
        before = "" if self.champion_before is None else f" (before: version {self.champion_before})"
        summary = {
            "promoted": f"promoted {self.name} version {self.version} to champion{before}",
            "forced": f"promoted {self.name} version {self.version} to champion with --force{before}",
            "rejected": f"rejected {self.name} version {self.version}: it remains candidate",
            "rolled_back": f"rolled back {self.name} to version {self.version}{before}",
        }[self.decision]
        lines = [f"  {'passed' if r.passed else 'failed'} {r.gate}: {r.reason}" for r in self.gates]
        return "\n".join([summary, *lines])


def promote(
    client: "MlflowClient",
    name: str,
    thresholds: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
    force: bool = False,
    log: Callable[[str], None] = lambda text: None,
    gates: Sequence[Gate] | None = None,
) -> PromotionRecord:
    """Evaluate the gates on the candidate of `name`, and make it the champion if all pass; return the record.

    `thresholds`: bounds by metric; `tolerance`: how much worse than the champion the candidate may be; `gates`: custom
    gates instead of these two; `force`: promote whatever the gates return.

    Raises:
        GateRejectedError: A gate rejected the candidate. Its text has a line per gate.
        SpecError: There is no candidate.
    """
    known = aliases(client, name)
    if CANDIDATE not in known:
        champion = f"; version {known[CHAMPION]} is the champion" if CHAMPION in known else ""
        raise SpecError(
            f"{name} has no candidate{champion}; train one, or set the alias `{CANDIDATE}` in MLflow"
        )
    candidate = get_version(client, name, known[CANDIDATE])
    if known.get(CHAMPION) == candidate.version:
        return _finish_promotion(client, candidate)
    champion_version = get_version(client, name, known[CHAMPION]) if CHAMPION in known else None
    context = GateContext(
        candidate, champion_version, _champion_evaluator(client, candidate, champion_version, log)
    )
    chosen = default_gates(thresholds or {}, tolerance) if gates is None else gates
    record = _evaluate_gates(chosen, context, force)
    _save_record(client, candidate, record)
    if record.decision == "rejected":
        raise GateRejectedError(record.text())
    _move_aliases(client, name, candidate.version, record.champion_before)
    return record


def _evaluate_gates(gates: Sequence[Gate], context: GateContext, force: bool) -> PromotionRecord:
    results = tuple(_evaluate_gate(gate, context, force) for gate in gates)
    passed = all(result.passed for result in results)
    return PromotionRecord(
        "promoted" if passed else "forced" if force else "rejected",
        context.candidate.name,
        context.candidate.version,
        None if context.champion is None else context.champion.version,
        results,
    )


def _move_aliases(client: "MlflowClient", name: str, candidate: int, champion: int | None) -> None:
    with translate_errors(client.tracking_uri):
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(champion))
        client.set_registered_model_alias(name, CHAMPION, str(candidate))
        client.delete_registered_model_alias(name, CANDIDATE)


def rollback(client: "MlflowClient", name: str) -> PromotionRecord:
    """Make the previous champion of `name` the champion again; return the record.

    The replaced champion becomes `previous`, so that a second rollback undoes the first. Raises SpecError if there is
    no champion or no previous version.
    """
    known = aliases(client, name)
    for alias in (CHAMPION, PREVIOUS):
        if alias not in known:
            raise SpecError(f"{name} has no {alias} version, so there is nothing to roll back to")
    in_progress = _ROLLBACK_IN_PROGRESS in known
    leaving = known[_ROLLBACK_IN_PROGRESS] if in_progress else known[CHAMPION]
    coming = known[CHAMPION] if in_progress and known[CHAMPION] != leaving else known[PREVIOUS]
    if leaving == coming:
        raise SpecError(
            f"{name}: version {leaving} is both champion and previous, so there is nothing to roll back to"
        )
    record = PromotionRecord("rolled_back", name, coming, leaving)
    _save_record(client, get_version(client, name, leaving), record)
    with translate_errors(client.tracking_uri):
        client.set_registered_model_alias(name, _ROLLBACK_IN_PROGRESS, str(leaving))
        client.set_registered_model_alias(name, CHAMPION, str(coming))
        client.set_registered_model_alias(name, PREVIOUS, str(leaving))
        client.delete_registered_model_alias(name, _ROLLBACK_IN_PROGRESS)
    return record


def _finish_promotion(client: "MlflowClient", candidate: ModelVersion) -> PromotionRecord:
    """Complete a promotion whose record is saved and whose last alias is missing."""
    with translate_errors(client.tracking_uri):
        client.delete_registered_model_alias(candidate.name, CANDIDATE)
    before = (candidate.decision or {}).get("champion_before")
    return PromotionRecord("promoted", candidate.name, candidate.version, before)


def _evaluate_gate(gate: Gate, context: GateContext, force: bool) -> GateResult:
    try:
        return gate.evaluate(context)
    except RayfuseError as error:
        if not force:
            raise
        return GateResult(type(gate).__name__, False, f"not evaluated: {error}")


def _champion_evaluator(
    client: "MlflowClient", candidate: ModelVersion, champion: ModelVersion | None, log: Callable[[str], None]
) -> Callable[[], ModelMetrics] | None:
    """Return a function that evaluates the champion on the rows of the candidate; None without a champion."""
    if champion is None:
        return None

    def evaluate() -> ModelMetrics:
        log(
            f"evaluating champion version {champion.version} on the rows of candidate version {candidate.version}"
        )
        folder = download(client, f"models:/{candidate.name}/{candidate.version}")
        rows = evaluation_rows(load_job(folder)[0], candidate.split)
        champion_folder = download(client, f"models:/{champion.name}/{champion.version}")
        found = evaluate_folder(champion_folder, rows=rows, warn=log)
        return ModelMetrics(found["metrics"], found["by_inputs"])

    return evaluate


def _save_record(client: "MlflowClient", version: ModelVersion, record: PromotionRecord) -> None:
    """Write a record as an artifact of the version's run, and its path as a tag of the version.

    The tag of a version without a run is the decision.
    """
    stamp = record.time.replace(":", "").replace("+0000", "Z")
    file = f"decisions/{stamp}-version-{version.version}-{record.decision}.json"
    with translate_errors(client.tracking_uri):
        if version.run_id:
            client.log_text(version.run_id, json.dumps(record.to_dict(), indent=1), file)
        tag = file if version.run_id else record.decision
        client.set_model_version_tag(version.name, str(version.version), DECISION_TAG, tag)
