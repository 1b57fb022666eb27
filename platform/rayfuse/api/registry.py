"""Registered models: list, describe, promote, roll back; and registration of voices."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayfuse.console import show_log
from rayfuse.errors import SpecError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from rayfuse.registry.promotion import PromotionRecord
    from rayfuse.registry.voices import RegisteredVoice

_log = logging.getLogger(__name__)


def list_models(tracking_uri: str | None = None) -> list[dict[str, Any]]:
    """Return each registered model with its versions and aliases, and the metric of its champion, else of the newest.

    tracking_uri: by default MLFLOW_TRACKING_URI, else the database `runs/mlflow.db`. Raises UnavailableError if MLflow
    does not respond.
    """
    from rayfuse.registry import versions

    return versions.list_models(_client(tracking_uri))


def describe_model(name: str, tracking_uri: str | None = None) -> dict[str, Any]:
    """Return a registered model with its aliases and all its versions, the newest first.

    Raises SpecError if there is no such model, UnavailableError if MLflow does not respond.
    """
    from rayfuse.registry import versions

    return versions.describe_model(_client(tracking_uri), name)


def promote(
    name: str,
    *,
    thresholds: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
    gates: Sequence[str | Mapping[str, Any]] = (),
    force: bool = False,
    tracking_uri: str | None = None,
    verbose: bool = True,
) -> "PromotionRecord":
    """Promote the candidate of a registered model to champion if it passes the gates, and return the record.

    By default it must not be worse than the champion on the same rows, with every subset of inputs that a request may
    have.

    Args:
        name: Name of the registered model.
        thresholds: What the candidate must reach by metric, as in `{"answer/accuracy": 0.9}`; a bound from above for
            losses and errors.
        tolerance: How much worse than the champion the candidate may be.
        gates: Further gates: import paths of custom ones, `MODULE:CLASS`, or blocks as in
            `{"type": "no_regression", "tolerance": 0.02}`. One replaces a default gate of the same type.
        force: Promote even if a gate fails; the record is marked as forced.
        tracking_uri: By default MLFLOW_TRACKING_URI, else the database `runs/mlflow.db`.
        verbose: Show log lines, unless the application has configured logging.

    Raises:
        GateRejectedError: A gate rejected the candidate; it remains candidate.
        SpecError: There is no such model or candidate, or a gate is invalid.
        UnavailableError: MLflow does not respond.
    """
    from rayfuse.registry.gates import default_gates, parse_gate
    from rayfuse.registry.promotion import promote as decide

    chosen = default_gates(thresholds or {}, tolerance, [parse_gate(gate) for gate in gates])
    with show_log(verbose):
        return decide(_client(tracking_uri), name, force=force, log=_log.info, gates=chosen)


def rollback(name: str, *, tracking_uri: str | None = None) -> "PromotionRecord":
    """Make the previous champion of a registered model the champion again, and return the record.

    Raises SpecError if there is no previous champion, UnavailableError if MLflow does not respond.
    """
    from rayfuse.registry.promotion import rollback as decide

    return decide(_client(tracking_uri), name)


def register_voice(
    folder: str | Path,
    name: str,
    *,
    license: str | None = None,
    phonemizer: Literal["dictionary", "espeak"] | None = None,
    tracking_uri: str | None = None,
) -> "RegisteredVoice":
    """Register a voice of Piper as the next version of a model, with the alias `candidate`, and return the version.

    The same files again are the same version. Needs the extra `speech`.

    Args:
        folder: Folder with VOICE.onnx and VOICE.onnx.json.
        name: Name of the registered model.
        license: License of the voice, as in `CC0-1.0`; by default that of the MODEL_CARD in the folder.
        phonemizer: `dictionary`, the default, for English, or `espeak`, for any language: eSpeak NG, which is under
            GPL-3 and not a dependency of Rayfuse (`pip install espeakng-loader`).
        tracking_uri: By default MLFLOW_TRACKING_URI, else the database `runs/mlflow.db`.

    Raises:
        DataError: There is no voice of Piper in the folder, or it is damaged.
        SpecError: The license is unknown, the phonemizer is not for this voice, the name is invalid or that of a model of
            another kind.
        ResourceError: A package is not installed.
        UnavailableError: MLflow does not respond.
    """
    from pydantic import TypeAdapter, ValidationError

    from rayfuse.registry.voices import register_voice as register
    from rayfuse.spec.base import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise SpecError(f"--name {name}: {error.errors()[0]['msg']}") from None
    return register(_client(tracking_uri, create=True), name, Path(folder).expanduser(), license, phonemizer)


def _client(tracking_uri: str | None, create: bool = False) -> "MlflowClient":
    from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri

    return connect(resolve_tracking_uri(tracking_uri), create=create)
