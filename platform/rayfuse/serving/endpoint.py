"""The Ray Serve deployment of an endpoint: HTTP ingress and model replica in one class.

Serve imports an application builder by name: `rayfuse.serving.endpoint:build`, which `rayfuse serve up` calls with all
arguments resolved, or `rayfuse.serving.endpoint:from_spec`, which reads the service's spec on the cluster (KubeRay).
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.applications import Starlette

from rayfuse.errors import SpecError, UnavailableError
from rayfuse.ray_patches import bind_replica_to_loopback
from rayfuse.registry.download import ModelSource, fetch, resolve_version
from rayfuse.serving import serve_config
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.metrics import ServeMetrics
from rayfuse.serving.settings import Settings
from rayfuse.serving.speech_app import build_speech_app
from rayfuse.serving.speech_engine import SpeechEngine
from rayfuse.spec.load import load_spec
from rayfuse.spec.service import GenerationLimits, Service
from rayfuse.speech.voice import Voice
from rayfuse.speech.voice_folder import is_voice

_MAX_CONSTRUCTOR_RETRIES = 3
_RETRY_TIMEOUT_SECONDS = 300.0
_RETRY_INTERVAL_SECONDS = 5.0

_log = logging.getLogger(__name__)


class EndpointArgs(BaseModel):
    """Arguments of a replica; a change of any of them starts new replicas."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Model that each replica downloads: `models:/NAME/VERSION`, a folder or the URL of one."""
    tracking_uri: str | None = None
    """MLflow tracking URI; None: MLFLOW_TRACKING_URI of the replica's environment."""
    num_threads: int = 1
    """Intra-op threads of PyTorch."""
    generation: GenerationLimits = GenerationLimits()
    """Decoding of generation tasks."""


class SpecArgs(BaseModel):
    """Arguments of an application that reads its service's spec on the cluster."""

    model_config = ConfigDict(extra="forbid")

    spec: str
    """Path or URL of the spec's file."""
    digest: str = ""
    """Digest of the file's content: Serve redeploys an application only if its arguments change."""


@serve.deployment(name="Endpoint", max_constructor_retry_count=1)
@serve.ingress()
class Endpoint:
    """A replica: a model and its HTTP routes, built from the model's inputs and tasks."""

    docs_path = "/docs"  # for Ray's dashboard

    def __init__(self, arguments: EndpointArgs) -> None:
        _use_serve_log_handlers()
        bind_replica_to_loopback()
        # A model folder is self-contained.
        os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        folder = _download_model(arguments)
        self.engine: InferenceEngine | SpeechEngine = (
            _speech_engine(folder, arguments) if is_voice(folder) else _inference_engine(folder, arguments)
        )

    def __serve_build_asgi_app__(self) -> Starlette:
        """Build the ASGI application; Ray Serve calls this in the replica."""
        if isinstance(self.engine, SpeechEngine):
            return build_speech_app(self.engine)
        return build_app(self.engine)

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply a new `user_config` without a restart; Ray Serve calls this."""
        self.engine.update_settings(Settings.load(config))

    def check_health(self) -> None:
        """Raise RuntimeError where the replica must be restarted; Ray Serve calls this."""
        self.engine.check_health()


def _inference_engine(folder: Path, arguments: EndpointArgs) -> InferenceEngine:
    import torch

    from rayfuse.model.predictor import Predictor
    from rayfuse.serving.engine import warm_up

    torch.set_num_threads(arguments.num_threads)
    predictor = Predictor(folder)
    warm_up(predictor)
    engine = InferenceEngine(
        predictor,
        Settings(),
        num_threads=max(2, arguments.num_threads),
        generation=arguments.generation,
        metrics=ServeMetrics(),
    )
    engine.decoders.start()
    return engine


def _speech_engine(folder: Path, arguments: EndpointArgs) -> SpeechEngine:
    voice = Voice(folder)
    voice.check()
    return SpeechEngine(voice, Settings(), num_threads=arguments.num_threads, metrics=ServeMetrics())


def build(arguments: EndpointArgs) -> serve.Application:
    """Build the application of an endpoint; its deployment options come from Serve's configuration."""
    return Endpoint.bind(arguments)  # type: ignore[attr-defined]


def from_spec(arguments: SpecArgs) -> serve.Application:
    """Build the application of a service's spec, read with the environment of the cluster's nodes.

    Retries for 5 minutes while MLflow is unavailable, which may start at the same time as the cluster. Raises SpecError
    where the service has no API keys, because Serve listens on all interfaces of a cluster.
    """
    service = load_spec(arguments.spec, Service)
    if not service.auth.keys:
        raise SpecError(
            f"{arguments.spec}: auth.keys: missing, and the endpoint is reachable from other machines; "
            'set keys: "${RAYFUSE_API_KEYS:-}", with RAYFUSE_API_KEYS in a Secret listed under `secrets.env` of the '
            "cluster spec"
        )
    source = _resolve_version_with_retry(service)
    _log.info("%s: %s", service.name, source.model)
    options = serve_config.deployment_options(service, source)
    deployment = Endpoint.options(**options, max_constructor_retry_count=_MAX_CONSTRUCTOR_RETRIES)  # type: ignore[attr-defined]
    return deployment.bind(EndpointArgs(**serve_config.application_args(service, source)))


def _resolve_version_with_retry(service: Service) -> ModelSource:
    deadline = time.monotonic() + _RETRY_TIMEOUT_SECONDS
    while True:
        try:
            return resolve_version(service.model, service.tracking_uri)
        except UnavailableError as error:
            if time.monotonic() > deadline:
                raise
            _log.warning("%s: %s; retrying", service.name, error)
            time.sleep(_RETRY_INTERVAL_SECONDS)


def _download_model(arguments: EndpointArgs) -> Path:
    folder = fetch(arguments.model, arguments.tracking_uri).folder
    _log.info("loading %s from %s", arguments.model, folder)
    return folder


def _use_serve_log_handlers() -> None:
    """Write the log to the replica's log file, which Ray's dashboard shows."""
    log = logging.getLogger("rayfuse")
    log.handlers = list(logging.getLogger("ray.serve").handlers)
    log.setLevel(logging.INFO)
