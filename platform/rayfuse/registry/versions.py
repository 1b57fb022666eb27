"""Registered models and their versions, as MLflow knows them: which there are, what they measured, which alias they have."""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rayfuse.errors import SpecError
from rayfuse.registry.tracking import explained
from rayfuse.spec.tasks import Mode

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

METRICS_TAG = "rayfuse.metrics"
BY_INPUTS_TAG = "rayfuse.by_inputs"
JUDGED_TAG = "rayfuse.judged"
DIGESTS_TAG = "rayfuse.digests"
FOLDER_TAG = "rayfuse.folder_digest"
DECISION_TAG = "rayfuse.decision"

_URI = re.compile(r"^models:/([^/@]+)(?:@([^/@]+)|/(\d+))$")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    run_id: str | None = None
    source: str = ""
    created: str = ""
    """ISO time."""
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By split: `validation`, `test`."""
    by_inputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By subset of the inputs, on the rows of `split`."""
    split: str = "test"
    """The split that the model is judged on."""
    metric: str = "loss"
    """What its job judges it by."""
    mode: Mode = "min"
    required: tuple[str, ...] = ()
    """Inputs that every request has."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Content hash of the rows of each split."""
    folder_digest: str | None = None
    decision: Mapping[str, Any] | None = None
    """The last decision about this version."""

    @property
    def judged(self) -> Mapping[str, float]:
        """Its metrics on the split that it is judged on."""
        return self.metrics.get(self.split, {})

    @property
    def digest(self) -> str | None:
        """Content hash of the rows that it is judged on."""
        return self.digests.get(self.split)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "version": self.version,
            "aliases": list(self.aliases),
            "created": self.created,
            "run_id": self.run_id,
            "metric": self.metric,
            "split": self.split,
            "metrics": self.metrics,
            "by_inputs": self.by_inputs,
            "digests": self.digests,
            "decision": self.decision,
        }


def resolve(client: "MlflowClient", uri: str) -> tuple[str, int]:
    """Name and version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now.

    Raises SpecError that says what there is instead.
    """
    match = _URI.match(uri)
    if match is None:
        raise SpecError(f"{uri}: not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    known = aliases(client, name)
    if alias is not None:
        if alias not in known:
            raise SpecError(f"{uri}: no version of {name} has the alias `{alias}`; {_those(known)}")
        return name, known[alias]
    return name, get_version(client, name, int(number)).version


def aliases(client: "MlflowClient", name: str) -> dict[str, int]:
    """The version that each alias of a model names. Raises SpecError for an unknown model, with near names."""
    return {alias: int(version) for alias, version in _registered(client, name).aliases.items()}


def get_version(client: "MlflowClient", name: str, number: int) -> Version:
    """One version with what was measured of it. Raises SpecError where there is none."""
    known = aliases(client, name)
    with explained(client.tracking_uri):
        found = _or_none(lambda: client.get_model_version(name, str(number)))
    if found is None:
        there = ", ".join(str(version.version) for version in versions(client, name))
        raise SpecError(f"models:/{name}/{number}: no such version; there are: {there or 'none'}")
    return _read(found, known)


def versions(client: "MlflowClient", name: str) -> list[Version]:
    """All versions of a model, the newest first."""
    known = aliases(client, name)
    with explained(client.tracking_uri):
        found = list(_pages(lambda token: client.search_model_versions(f"name='{name}'", page_token=token)))
    return sorted((_read(version, known) for version in found), key=lambda v: v.version, reverse=True)


def names(client: "MlflowClient") -> list[str]:
    """The registered models, by name."""
    with explained(client.tracking_uri):
        return sorted(
            model.name for model in _pages(lambda token: client.search_registered_models(page_token=token))
        )


def list_models(client: "MlflowClient") -> list[dict[str, Any]]:
    """For each registered model its name, versions and aliases, and what the champion (else the newest) measured."""
    found = []
    for name in names(client):
        all_versions = versions(client, name)
        by_alias = {alias: version for version in all_versions for alias in version.aliases}
        shown = by_alias.get(CHAMPION) or (all_versions[0] if all_versions else None)
        found.append(
            {
                "name": name,
                "versions": len(all_versions),
                "latest": all_versions[0].version if all_versions else None,
                "aliases": {alias: version.version for alias, version in sorted(by_alias.items())},
                "metric": shown and shown.metric,
                "value": shown and shown.judged.get(shown.metric),
            }
        )
    return found


def show(client: "MlflowClient", name: str) -> dict[str, Any]:
    """A model with all its versions, the newest first."""
    return {
        "name": name,
        "aliases": aliases(client, name),
        "versions": [v.plain() for v in versions(client, name)],
    }


def _registered(client: "MlflowClient", name: str) -> Any:
    with explained(client.tracking_uri):
        found = _or_none(lambda: client.get_registered_model(name))
    if found is not None:
        return found
    known = names(client)
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none yet'}"
    raise SpecError(f"no registered model `{name}`; {remedy}")


def _those(known: Mapping[str, int]) -> str:
    if not known:
        return "none has an alias"
    return "there are: " + ", ".join(f"{alias} (version {number})" for alias, number in sorted(known.items()))


def _read(found: Any, known: Mapping[str, int]) -> Version:
    tags, number = dict(found.tags or {}), int(found.version)
    judged = _json(tags.get(JUDGED_TAG))
    return Version(
        name=found.name,
        version=number,
        run_id=found.run_id or None,
        source=found.source,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        aliases=tuple(sorted(alias for alias, version in known.items() if version == number)),
        metrics=_json(tags.get(METRICS_TAG)),
        by_inputs=_json(tags.get(BY_INPUTS_TAG)),
        split=judged.get("split", "test"),
        metric=judged.get("metric", "loss"),
        mode=judged.get("mode", "min"),
        required=tuple(judged.get("required", ())),
        digests=_json(tags.get(DIGESTS_TAG)),
        folder_digest=tags.get(FOLDER_TAG),
        decision=_json(tags.get(DECISION_TAG)) or None,
    )


def _json(text: str | None) -> dict[str, Any]:
    """A tag's mapping; empty where people changed it by hand into something else."""
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _or_none(get: Callable[[], Any]) -> Any:
    """What MLflow has; None for what it does not have."""
    from mlflow.exceptions import MlflowException

    try:
        return get()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            return None
        raise
