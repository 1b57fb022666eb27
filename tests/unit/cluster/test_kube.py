"""The client of Kubernetes with connection errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from rayfuse.cluster import kube
from rayfuse.cluster.kube import KubeClient
from rayfuse.errors import UnavailableError

POD = {"metadata": {"name": "a"}}


class Proxy(HTTPServer):
    """Proxy of an API server that responds with these status codes, one after the other."""

    codes: list[int]
    credentials: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        code = self.server.codes.pop(0)
        self.server.credentials.append(self.headers["Authorization"])
        body = json.dumps({"items": [POD]}) if code == 200 else "<html>bad gateway</html>"
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if code == 200 else "text/html")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", 0), Handler) as server:
        server.credentials = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubeClient:
    config = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{proxy.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(kube, "_RETRY_INTERVAL_SECONDS", 0.01)
    return KubeClient.connect()


def test_the_namespace_is_the_contexts(client: KubeClient) -> None:
    assert client.namespace == "ml"
    assert KubeClient.connect("other").namespace == "other"


def test_an_outage_after_a_response_is_retried(client: KubeClient, proxy: Proxy) -> None:
    proxy.codes = [200, 502, 503, 200]
    assert client.list("Pod") == client.list("Pod") == [POD | {"apiVersion": "v1", "kind": "Pod"}]
    assert proxy.codes == []


def test_an_unreachable_server_is_not_retried(client: KubeClient, proxy: Proxy) -> None:
    proxy.codes = [502, 200]
    with pytest.raises(UnavailableError, match="is unavailable: 502 Bad Gateway"):
        client.list("Pod")
    assert proxy.codes == [200]


def test_rejections_are_not_retried(
    client: KubeClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.codes = [200, 403, 200]
    client.list("Pod")
    with pytest.raises(UnavailableError, match="denied permission: Forbidden"):
        client.list("Pod")
    assert proxy.codes == [200]


def test_retries_are_limited(client: KubeClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "_RETRY_TIMEOUT_SECONDS", 0.05)
    proxy.codes = [200, *[503] * 1000]
    client.list("Pod")
    with pytest.raises(UnavailableError, match="is unavailable: 503"):
        client.list("Pod")
    assert len(proxy.codes) < 999


def test_a_kind_that_was_there_is_waited_for(client: KubeClient, proxy: Proxy) -> None:
    """An API server that starts answers before it has its custom resources."""
    proxy.codes = [200, 503, 404, 404, 200]
    assert client.list("RayJob") == client.list("RayJob")
    assert proxy.codes == []


def test_a_kind_that_never_was_there_is_not_waited_for(client: KubeClient, proxy: Proxy) -> None:
    proxy.codes = [200, 404, 200]
    client.list("Pod")
    with pytest.raises(UnavailableError, match="has no resource RayJob; install KubeRay"):
        client.list("RayJob")
    assert proxy.codes == [200]


def test_credentials_are_read_again(client: KubeClient, proxy: Proxy, tmp_path: Path) -> None:
    proxy.codes = [200, 401, 200, 401, 401]
    client.list("Pod")
    config = (tmp_path / "config").read_text()
    (tmp_path / "config").write_text(config.replace("first", "second"))
    client.list("Pod")
    assert proxy.credentials == ["Bearer first", "Bearer first", "Bearer second"]
    with pytest.raises(UnavailableError, match="authentication to .* failed: .*; log in again"):
        client.list("Pod")
