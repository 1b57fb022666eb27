"""The candidate against the champion: on the rows as they are, and with every subset of inputs that a caller may send."""

from collections.abc import Mapping

from rayfuse.errors import RayfuseError
from rayfuse.registry.gates.base import Case, Measured, Verdict
from rayfuse.registry.versions import Version

WHOLE = "as they are"
"""Name of the rows with all the inputs that they have."""


class NotWorse:
    """The metric that the candidate's job is judged by may not be worse than the champion's by more than `tolerance`.

    Subsets without a required input are recorded, but not judged: no endpoint answers them, and the noise of numbers
    near chance would refuse good candidates.
    """

    def __init__(self, tolerance: float = 0.01) -> None:
        self.tolerance = tolerance

    def judge(self, case: Case) -> Verdict:
        candidate, champion = case.candidate, case.champion
        if champion is None:
            return Verdict("not_worse", True, "no champion yet")
        try:
            before, how = _champions_numbers(case, champion)
        except RayfuseError as error:
            reason = f"the champion (version {champion.version}) cannot be measured on the candidate's rows: {error}"
            return Verdict("not_worse", False, reason)
        metric = candidate.metric
        old, new = _values(before, metric), _values(Measured(candidate.judged, candidate.by_inputs), metric)
        if WHOLE not in old or WHOLE not in new:
            who = f"the champion (version {champion.version})" if WHOLE in new else "the candidate"
            return Verdict(
                "not_worse", False, f"{who} does not report {metric}, so the two cannot be compared"
            )
        sign = 1 if candidate.mode == "max" else -1
        common = [name for name in new if name in old]
        judged = [name for name in common if name == WHOLE or {*candidate.required} <= {*name.split("+")}]
        # Not `<`, so that NaN counts as worse.
        worse = [name for name in judged if not sign * (new[name] - old[name]) >= -self.tolerance]
        numbers = {
            "metric": metric,
            "tolerance": self.tolerance,
            "champion_measured": how,
            "judged": judged,
            "compared": {name: {"candidate": new[name], "champion": old[name]} for name in common},
        }
        shown = worse or [WHOLE]
        lines = ", ".join(
            f"{metric} {new[name]:.4f} against {old[name]:.4f}"
            + ("" if name == WHOLE else f" with {name} only")
            for name in shown
        )
        rule = f"tolerance {self.tolerance:g}; champion's numbers {how}"
        return Verdict("not_worse", not worse, f"{lines} ({rule})", numbers)


def _champions_numbers(case: Case, champion: Version) -> tuple[Measured, str]:
    """What the champion measured on the candidate's rows: recorded where it saw the same rows, else measured now."""
    same = case.candidate.digest is not None and case.candidate.digest == champion.digest
    if same or case.measure_champion is None:
        return Measured(
            champion.judged, champion.by_inputs
        ), "recorded on the same rows" if same else "recorded"
    return case.measure_champion(), "measured now on the candidate's rows"


def _values(measured: Measured, metric: str) -> Mapping[str, float]:
    """The metric on the rows as they are, and with each subset of the inputs."""
    found = {WHOLE: measured.metrics[metric]} if metric in measured.metrics else {}
    return found | {name: part[metric] for name, part in measured.by_inputs.items() if metric in part}
