"""Registered models and their versions in MLflow, with metrics and aliases."""

import difflib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.errors import SpecError
from rayfuse.registry.mlflow_errors import is_missing, translate_errors
from rayfuse.spec.tasks import Mode

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
"""Aliases of versions."""

RECORD_TAG = "rayfuse.record"
"""Tag with the path of a version's record among the artifacts of its run."""
FOLDER_DIGEST_TAG = "rayfuse.folder_digest"
DECISION_TAG = "rayfuse.decision"
"""Tag with the path of the last decision among the artifacts of the version's run."""

KIND_TAG = "rayfuse.kind"
VOICE_KIND = "voice"
"""Kind of a version that is a voice; other versions have no kind."""
VOICE_TAGS = {
    "license": "rayfuse.license",
    "language": "rayfuse.language",
    "sample_rate": "rayfuse.sample_rate",
    "phonemizer": "rayfuse.phonemizer",
}
"""Tags with the facts of a voice."""

_URI = re.compile(r"^models:/([^/@]+)(?:@([^/@]+)|/(\d+))$")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    """Registered model."""
    version: int
    """Number of the version, from 1."""
    run_id: str | None = None
    """MLflow run that trained it."""
    source: str = ""
    """URI of its artifacts."""
    created: str = ""
    """Time of its registration, in ISO format and UTC."""
    aliases: tuple[str, ...] = ()
    """Aliases of this version."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by split: `validation`, `test`."""
    by_inputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by subset of the inputs (`a+b`), on the rows of `split`."""
    split: str = "test"
    """Split whose metrics the gates compare."""
    selection_metric: str = "loss"
    """Selection metric of its job."""
    mode: Mode = "min"
    """True if higher or lower values of that metric are better."""
    metric_modes: Mapping[str, Mode] = field(default_factory=dict)
    """Every metric that its job reports, each with its mode."""
    required_inputs: tuple[str, ...] = ()
    """Inputs that every request must have."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Content hash of the rows by split."""
    folder_digest: str | None = None
    """Content hash of the model folder."""
    record_file: str | None = None
    """Path of the record, which has the fields from `metrics` to `digests`, among the artifacts of the run."""
    decision_file: str | None = None
    """Path of the last decision among the artifacts of the run."""
    decision: Mapping[str, Any] | None = None
    """Last `PromotionRecord` of this version, as JSON."""
    kind: str | None = None
    """`voice` for a voice; None for a trained model."""
    voice: Mapping[str, str] = field(default_factory=dict)
    """License, language, sample rate and phonemizer of a voice."""

    @property
    def evaluation_metrics(self) -> Mapping[str, float]:
        """Metrics on the split that the gates compare."""
        return self.metrics.get(self.split, {})

    @property
    def evaluation_digest(self) -> str | None:
        """Content hash of the rows of that split."""
        return self.digests.get(self.split)

    def to_dict(self) -> dict[str, Any]:
        """Return the version as JSON."""
        return {
            "version": self.version,
            "aliases": list(self.aliases),
            "created": self.created,
            "run_id": self.run_id,
            "metric": self.selection_metric,
            "split": self.split,
            "metrics": self.metrics,
            "by_inputs": self.by_inputs,
            "digests": self.digests,
            "decision": self.decision,
            **({"voice": dict(self.voice)} if self.voice else {}),
        }


def resolve_model_uri(client: "MlflowClient", uri: str) -> tuple[str, int]:
    """Resolve `models:/NAME@ALIAS` or `models:/NAME/VERSION` to a name and a version.

    Raises SpecError if there is no such model, alias or version, with those that exist.
    """
    match = _URI.match(uri)
    if match is None:
        raise SpecError(
            f"{uri}: not the URI of a registered model; use models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    name, alias, number = match.groups()
    known = aliases(client, name)
    if alias is not None:
        if alias not in known:
            raise SpecError(f"{uri}: no version of {name} has the alias `{alias}`; {_format_aliases(known)}")
        return name, known[alias]
    return name, get_version(client, name, int(number)).version


def aliases(client: "MlflowClient", name: str) -> dict[str, int]:
    """Return the version of each alias of a model. Raises SpecError for an unknown model, with similar names."""
    return {alias: int(version) for alias, version in _get_registered_model(client, name).aliases.items()}


def get_version(client: "MlflowClient", name: str, number: int) -> ModelVersion:
    """Return a version with its metrics. Raises SpecError if it does not exist."""
    known = aliases(client, name)
    with translate_errors(client.tracking_uri):
        found = _none_if_missing(lambda: client.get_model_version(name, str(number)))
    if found is None:
        existing = ", ".join(str(version.version) for version in versions(client, name))
        raise SpecError(f"models:/{name}/{number}: version not found; versions: {existing or 'none'}")
    return with_record(client, _parse_version(found, known))


def versions(client: "MlflowClient", name: str) -> list[ModelVersion]:
    """Return all versions of a model, the newest first, without their records (see `with_record`)."""
    known = aliases(client, name)
    with translate_errors(client.tracking_uri):
        found = list(
            _paginate(lambda token: client.search_model_versions(f"name='{name}'", page_token=token))
        )
    return sorted(
        (_parse_version(version, known) for version in found), key=lambda v: v.version, reverse=True
    )


def with_record(client: "MlflowClient", version: ModelVersion) -> ModelVersion:
    """Return a version with its metrics and its last decision, which are artifacts of its run."""
    record = _read_artifact(client, version.run_id, version.record_file)
    decision = _read_artifact(client, version.run_id, version.decision_file)
    return replace(
        version,
        metrics=record.get("metrics", {}),
        by_inputs=record.get("by_inputs", {}),
        split=record.get("split", "test"),
        selection_metric=record.get("selection_metric", "loss"),
        mode=record.get("mode", "min"),
        metric_modes=record.get("metric_modes", {}),
        required_inputs=tuple(record.get("required_inputs", ())),
        digests=record.get("digests", {}),
        decision=decision or None,
    )


def list_model_names(client: "MlflowClient") -> list[str]:
    """Return the names of all registered models, sorted."""
    with translate_errors(client.tracking_uri):
        return sorted(
            model.name for model in _paginate(lambda token: client.search_registered_models(page_token=token))
        )


def list_models(client: "MlflowClient") -> list[dict[str, Any]]:
    """Return each registered model with its versions and aliases, and the metric of its champion, else of the newest."""
    found = []
    for name in list_model_names(client):
        all_versions = versions(client, name)
        by_alias = {alias: version for version in all_versions for alias in version.aliases}
        shown = by_alias.get(CHAMPION) or (all_versions[0] if all_versions else None)
        shown = shown and with_record(client, shown)
        found.append(
            {
                "name": name,
                "versions": len(all_versions),
                "latest": all_versions[0].version if all_versions else None,
                "aliases": {alias: version.version for alias, version in sorted(by_alias.items())},
                "metric": shown and shown.selection_metric,
                "value": shown and shown.evaluation_metrics.get(shown.selection_metric),
            }
        )
    return found


def describe_model(client: "MlflowClient", name: str) -> dict[str, Any]:
    """Return a model with all its versions, the newest first."""
    return {
        "name": name,
        "aliases": aliases(client, name),
        "versions": [with_record(client, v).to_dict() for v in versions(client, name)],
    }


def _get_registered_model(client: "MlflowClient", name: str) -> Any:
    with translate_errors(client.tracking_uri):
        found = _none_if_missing(lambda: client.get_registered_model(name))
    if found is not None:
        return found
    known = list_model_names(client)
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"registered models: {', '.join(known) or 'none'}"
    raise SpecError(f"registered model `{name}` not found; {remedy}")


def _format_aliases(known: Mapping[str, int]) -> str:
    if not known:
        return "no version has an alias"
    return "aliases: " + ", ".join(f"{alias} (version {number})" for alias, number in sorted(known.items()))


def _parse_version(found: Any, known: Mapping[str, int]) -> ModelVersion:
    tags, number = dict(found.tags or {}), int(found.version)
    return ModelVersion(
        name=found.name,
        version=number,
        run_id=found.run_id or None,
        source=found.source,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        aliases=tuple(sorted(alias for alias, version in known.items() if version == number)),
        folder_digest=tags.get(FOLDER_DIGEST_TAG),
        record_file=tags.get(RECORD_TAG),
        decision_file=tags.get(DECISION_TAG),
        kind=tags.get(KIND_TAG),
        voice={name: tags[tag] for name, tag in VOICE_TAGS.items() if tag in tags},
    )


def _read_artifact(client: "MlflowClient", run_id: str | None, file: str | None) -> dict[str, Any]:
    """Return the mapping in a JSON artifact of a run; empty if there is none."""
    if run_id is None or file is None:
        return {}
    with translate_errors(client.tracking_uri), tempfile.TemporaryDirectory(prefix="rayfuse-") as folder:
        local = _none_if_missing(lambda: client.download_artifacts(run_id, file, folder))
        try:
            content = json.loads(Path(local).read_text(encoding="utf-8")) if local else {}
        except ValueError:
            return {}
    return content if isinstance(content, dict) else {}


def _paginate(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _none_if_missing(get: Callable[[], Any]) -> Any:
    """Return the result of a request to MLflow; None if the object does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return get()
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
