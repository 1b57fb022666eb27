"""The deployment on Ray Serve: one class that is both the HTTP side and a replica of the model.

Serve imports `build` by its name (`rayfuse.serve.endpoint:build`), on a laptop as on KubeRay.
"""

import logging
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray import serve
from starlette.applications import Starlette

from rayfuse.serve.app import build_app
from rayfuse.serve.settings import Settings


class Arguments(BaseModel):
    """What needs a new replica when it changes."""

    folder: str
    """The model folder, as the replica's machine sees it."""
    model: dict[str, Any]
    """`name` and `version`, for replies."""
    threads: int = 1
    """Threads that the model computes with."""


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
        predictor = Predictor(Path(arguments.folder))
        warm_up(predictor)
        self.engine = Engine(predictor, arguments.model, Settings(), threads=max(2, arguments.threads))

    def __serve_build_asgi_app__(self) -> Starlette:
        return build_app(self.engine)

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.engine.change(Settings.load(config))

    def check_health(self) -> None:
        self.engine.check()


def build(arguments: Arguments) -> serve.Application:
    """The application of one endpoint."""
    return Endpoint.bind(arguments)  # type: ignore[attr-defined]


def _log_with_serve() -> None:
    """Our log goes to the replica's file, which Ray's dashboard shows."""
    log = logging.getLogger("rayfuse")
    log.handlers = list(logging.getLogger("ray.serve").handlers)
    log.setLevel(logging.INFO)
