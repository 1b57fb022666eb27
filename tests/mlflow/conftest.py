"""The MLflow server of these tests."""

from collections.abc import Iterator

import pytest
from mlflow_server import Server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """Return the server, running."""
    if shared_server.process is None:
        shared_server.start()
    return shared_server
