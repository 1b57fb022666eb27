"""A real model behind the real application, without Ray."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from endpoints import b64, make_served_model, serve_in_thread
from starlette.testclient import TestClient
from tiny_jobs import write_audio, write_image

from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.decoders import Decoders
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.settings import Settings

BASE_URL = "http://localhost:8000"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(model_folder: Path) -> Predictor:
    return Predictor(model_folder)


@pytest.fixture(scope="session")
def decoders(predictor: Predictor) -> Iterator[Decoders]:
    shared = Decoders.for_predictor(predictor, num_processes=2, max_memory=1_000_000_000)
    yield shared
    shared.close()


@pytest.fixture
def build(predictor: Predictor, decoders: Decoders) -> Iterator[Callable[..., TestClient]]:
    """Return a client of an endpoint with the given settings (`host`: the caller's address)."""
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1", **settings: Any) -> TestClient:
            engine = InferenceEngine(predictor, Settings(**{"version": 3, **settings}), decoders=decoders)
            app = build_app(engine)
            client = stack.enter_context(
                TestClient(app, BASE_URL, client=(host, 50000), raise_server_exceptions=False)
            )
            client.engine = engine  # type: ignore[attr-defined]
            return client

        yield make


@pytest.fixture
def client(build: Callable[..., TestClient]) -> TestClient:
    return build(batch_wait_timeout=0.0)


@pytest.fixture(scope="session")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_image(tmp_path_factory.mktemp("image") / "red.png").read_bytes()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_audio(tmp_path_factory.mktemp("clip") / "low.wav").read_bytes()


@pytest.fixture
def all_inputs(png: bytes, clip: bytes) -> dict[str, Any]:
    """Return all inputs as JSON."""
    return {"image": b64(png), "audio": b64(clip), "text": "which colour is it?"}


@pytest.fixture(scope="session")
def server(predictor: Predictor) -> Iterator[str]:
    """Return the URL of an endpoint below /tiny on a real HTTP server."""
    with serve_in_thread(predictor, "/tiny", version=3, max_body_size=200_000, request_timeout=2.0) as url:
        yield url
