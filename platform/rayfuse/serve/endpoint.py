"""The deployment on Ray Serve: one class that is both the HTTP side and a replica of the model.

Serve imports a function by its name: `rayfuse.serve.endpoint:build` where `rayfuse serve up` says all there is to
say, `rayfuse.serve.endpoint:from_spec` where nobody but the cluster itself reads the spec, as on KubeRay.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.applications import Starlette

from rayfuse.errors import NotReachable, SpecError
from rayfuse.registry.fetching import Source, fetch, pin
from rayfuse.serve import applications
from rayfuse.serve.app import build_app
from rayfuse.serve.settings import Settings
from rayfuse.spec.load import load_spec
from rayfuse.spec.service import Service

_TRIES = 3
"""Starts of a first replica, on a cluster that may have nodes in trouble."""
_PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 5.0

_log = logging.getLogger("rayfuse.serve")


class Arguments(BaseModel):
    """What needs a new replica when it changes."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """What each replica fetches to its machine: `models:/NAME/VERSION`, a folder or the URL of one."""
    tracking: str | None = None
    """MLflow's address; None: the one in the replica's environment."""
    threads: int = 1
    """Threads that the model computes with."""


class Spec(BaseModel):
    """A service's file on the cluster's machines."""

    model_config = ConfigDict(extra="forbid")

    spec: str
    """Path or URL."""
    digest: str = ""
    """Anything that changes with the file's content, for Serve only looks at its arguments."""


@serve.deployment(name="Endpoint", max_constructor_retry_count=1)
@serve.ingress()
class Endpoint:
    """A model and its HTTP routes, which are built from the model's own inputs and tasks."""

    docs_path = "/docs"  # for Ray's dashboard

    def __init__(self, arguments: Arguments) -> None:
        _log_with_serve()
        # Everything that the model needs is in its folder.
        os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        import torch

        from rayfuse.model.predictor import Predictor
        from rayfuse.serve.engine import Engine, warm_up

        torch.set_num_threads(arguments.threads)
        predictor = Predictor(_fetch(arguments))
        warm_up(predictor)
        self.engine = Engine(predictor, Settings(), threads=max(2, arguments.threads))

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_app(self.engine)

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.engine.change(Settings.load(config))

    def check_health(self) -> None:
        self.engine.check()


def build(arguments: Arguments) -> serve.Application:
    """The application of one endpoint, whose deployment options are in Serve's configuration."""
    return Endpoint.bind(arguments)  # type: ignore[attr-defined]


def from_spec(arguments: Spec) -> serve.Application:
    """The application that a service's file describes, read with the environment of the cluster's machines.

    Waits for minutes for an MLflow that does not answer: where a whole cluster starts, nobody is there to try again.
    Raises SpecError where the service has no keys, because Serve listens on all interfaces of a cluster.
    """
    service = load_spec(arguments.spec, Service)
    if not service.auth.keys:
        raise SpecError(
            f"{arguments.spec}: auth.keys: none, and on a cluster others than its own machine call this endpoint; "
            'write keys: "${RAYFUSE_API_KEYS:-}", and put RAYFUSE_API_KEYS into a Secret that `secrets.env` of the '
            "cluster spec names"
        )
    source = _pin(service)
    _log.info("%s: %s", service.name, source.model)
    options = applications.options(service, source)
    deployment = Endpoint.options(**options, max_constructor_retry_count=_TRIES)  # type: ignore[attr-defined]
    return deployment.bind(Arguments(**applications.arguments(service, source)))


def _pin(service: Service) -> Source:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return pin(service.model, service.tracking)
        except NotReachable as error:
            if time.monotonic() > deadline:
                raise
            _log.warning("%s: %s; trying again", service.name, error)
            time.sleep(_PAUSE_SECONDS)


def _fetch(arguments: Arguments) -> Path:
    """The model's folder on this machine."""
    folder = fetch(arguments.model, arguments.tracking).folder
    _log.info("%s is in %s", arguments.model, folder)
    return folder


def _log_with_serve() -> None:
    """Our log goes to the replica's file, which Ray's dashboard shows."""
    log = logging.getLogger("rayfuse")
    log.handlers = list(logging.getLogger("ray.serve").handlers)
    log.setLevel(logging.INFO)
