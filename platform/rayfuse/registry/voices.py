"""Registration of Piper's voices as versions in MLflow, with what their users must know: license, language, sample rate."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse import __version__
from rayfuse.errors import SpecError
from rayfuse.registry.download import ARTIFACT_PATH, folder_digest
from rayfuse.registry.mlflow_connection import default_tracking_uri, long_timeout
from rayfuse.registry.mlflow_errors import translate_errors
from rayfuse.registry.registration import ensure_registered_model, pip_requirements
from rayfuse.registry.run_tags import DESCRIPTION_TAG, source_tags
from rayfuse.registry.tracker import get_or_create_experiment
from rayfuse.registry.versions import (
    CANDIDATE,
    FOLDER_DIGEST_TAG,
    KIND_TAG,
    VOICE_KIND,
    VOICE_TAGS,
    list_model_names,
    versions,
)
from rayfuse.speech.voice import Voice
from rayfuse.speech.voice_folder import VoiceDescription, find_piper_voice, save_voice

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FLAVOR = "rayfuse_voice"


@dataclass(frozen=True)
class RegisteredVoice:
    """A version of a registered voice."""

    name: str
    """Registered model."""
    version: int
    """Number of the version, from 1."""
    license: str
    """License of the voice."""
    language: str
    """BCP 47 tag, such as `en-US`."""
    sample_rate: int
    """Samples per second."""
    speakers: tuple[str, ...]
    """Names of the speakers; empty for a single one."""
    phonemizer: str
    """Way from texts to phonemes: `dictionary`, `espeak` or `characters`."""
    digest: str
    """Content hash of the model folder."""

    @property
    def uri(self) -> str:
        """URI of the version, for the `model` of a service."""
        return f"models:/{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return the version as JSON."""
        return {**asdict(self), "speakers": list(self.speakers), "model": self.uri}

    def __str__(self) -> str:
        speakers = f", {len(self.speakers)} speakers" if self.speakers else ""
        return (
            f"registered {self.name} version {self.version} as {CANDIDATE}: {self.language}, {self.sample_rate} Hz{speakers}, "
            f"license {self.license}, phonemizer {self.phonemizer}\nmodel: {self.uri}"
        )


def register_voice(
    client: "MlflowClient", name: str, folder: Path, license: str | None = None, phonemizer: str | None = None
) -> RegisteredVoice:
    """Register the Piper voice in a folder as the next version of `name`, with the alias `candidate`.

    `license`: by default that of its MODEL_CARD. The same files again are the same version.

    Raises:
        DataError: There is no voice in the folder, or it cannot speak a sentence.
        SpecError: The license is unknown, the phonemizer is not for this voice, or `name` is a model of another kind.
        ResourceError: A package that the voice needs is not installed.
    """
    found = find_piper_voice(folder)
    known_license = license or found.license
    if not known_license:
        raise SpecError(f"{folder}: no MODEL_CARD states a license; pass --license, as in --license CC0-1.0")
    with tempfile.TemporaryDirectory(prefix="rayfuse-voice-") as work:
        model = Path(work, ARTIFACT_PATH)
        description = save_voice(found, model, name, known_license, phonemizer)
        Voice(model).check()
        digest = folder_digest(model)
        with translate_errors(client.tracking_uri), long_timeout(), default_tracking_uri(client.tracking_uri):
            version = _find_version(client, name, digest)
            if version is None:
                version = _create_version(client, Path(work), description, digest)
            client.set_registered_model_alias(name, CANDIDATE, str(version))
    values = description.model_dump(include={"license", "language", "sample_rate", "phonemizer"})
    return RegisteredVoice(
        name=name, version=version, speakers=tuple(description.speakers), digest=digest, **values
    )


def _find_version(client: "MlflowClient", name: str, digest: str) -> int | None:
    """Return the version with a content; None if there is none. Raises SpecError if the model is not a voice."""
    if name not in list_model_names(client):
        return None
    known = versions(client, name)
    if any(version.kind != VOICE_KIND for version in known):
        raise SpecError(f"{name}: a registered model of another kind; choose another --name for the voice")
    return next((version.version for version in known if version.folder_digest == digest), None)


def _create_version(client: "MlflowClient", work: Path, description: VoiceDescription, digest: str) -> int:
    ensure_registered_model(client, description.name)
    experiment = get_or_create_experiment(client, description.name)
    card = _card(description)
    run = client.create_run(experiment, tags={**source_tags(VOICE_KIND, None), DESCRIPTION_TAG: card})
    run_id = str(run.info.run_id)
    facts = description.model_dump(mode="json", include=set(VOICE_TAGS))
    tags = {name: str(facts[field]) for field, name in VOICE_TAGS.items()}
    try:
        model_id = _log_model(client, experiment, run_id, work, description, tags)
        created = client.create_model_version(
            description.name,
            f"models:/{model_id}",
            run_id,
            tags={"rayfuse.version": __version__, KIND_TAG: VOICE_KIND, FOLDER_DIGEST_TAG: digest, **tags},
            description=card,
            model_id=model_id,
        )
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return int(created.version)


def _log_model(
    client: "MlflowClient",
    experiment: str,
    run_id: str,
    work: Path,
    description: VoiceDescription,
    tags: Mapping[str, str],
) -> str:
    """Log the folder as an MLflow model of the run; return the ID of the model."""
    from mlflow.models import Model

    logged = client.create_logged_model(
        experiment, name=description.name, source_run_id=run_id, tags=dict(tags), model_type=_FLAVOR
    )
    model_id = str(logged.model_id)
    try:
        model = Model(run_id=run_id, model_uuid=model_id, model_id=model_id, metadata=dict(tags))
        model.add_flavor(_FLAVOR, data=ARTIFACT_PATH)
        model.save(str(work / "MLmodel"))
        (work / "requirements.txt").write_text("\n".join(pip_requirements(("serve", "speech"))) + "\n")
        client.log_model_artifacts(model_id, str(work))
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.finalize_logged_model(model_id, "READY")
    return model_id


def _card(description: VoiceDescription) -> str:
    speakers = f", {len(description.speakers)} speakers" if description.speakers else ""
    return (
        f"A voice of Piper (VITS in ONNX): {description.language}, {description.sample_rate} Hz{speakers}. "
        f"License: {description.license}. Phonemes: {description.phonemizer}.\n\n"
        "Serve it with `rayfuse serve up`, and call `client.audio.speech.create` of OpenAI's client."
    )
