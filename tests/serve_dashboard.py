"""A stand-in for the dashboard of a Ray cluster, with the parts of Ray Serve's REST API that endpoints use."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class ServeDashboard:
    """Accepts configurations and reports their applications; nothing runs."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.status = "RUNNING"
        """Status of applications that are deployed from now on."""
        self.refused_hosts: set[str] = set()
        """Hosts on which Serve cannot listen, so that its applications fail."""
        self.on_poll: Callable[[], None] = lambda: None
        """Called in the server's thread when Serve's details are read while an application is deploying."""
        self.details: dict[str, Any] = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "proxies": {"node": {}},
            "applications": {},
        }

    def deployed_configs(self) -> dict[str, dict[str, Any]]:
        """Return the configuration of each application, by name."""
        return {name: app["deployed_app_config"] for name, app in self.details["applications"].items()}

    @property
    def host(self) -> str:
        """Address that Serve listens on."""
        return str(self.details["http_options"]["host"])

    def handle(self, method: str, path: str, content: Any) -> Any:
        """Return the response to a request."""
        if path == "/api/v0/nodes":
            return {"data": {"result": {"result": [{"state": "ALIVE", "resources_total": {"CPU": 8}}]}}}
        if path == "/api/jobs/":
            return []
        assert path == "/api/serve/applications/"
        if method == "DELETE":
            self.details.update(applications={}, proxies={})
        elif method == "PUT":
            self._apply(content)
        elif any(app["status"] == "DEPLOYING" for app in self.details["applications"].values()):
            self.on_poll()
        return self.details

    def _apply(self, config: dict[str, Any]) -> None:
        before = self.details["applications"]
        self.details.update(http_options=config["http_options"], proxies={"node": {}})
        self.details["applications"] = {
            app["name"]: self._application(app, before.get(app["name"])) for app in config["applications"]
        }

    def _application(self, config: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
        if before and before["deployed_app_config"] == config:
            return before
        [deployment] = config["deployments"]
        return {
            "status": "DEPLOY_FAILED" if self.host in self.refused_hosts else self.status,
            "route_prefix": config["route_prefix"],
            "deployed_app_config": config,
            "deployments": {
                "Endpoint": {
                    "deployment_config": {"user_config": deployment["user_config"]},
                    "replicas": [{"state": "RUNNING"}],
                }
            },
        }


@contextmanager
def serve_dashboard(port: int) -> Iterator[ServeDashboard]:
    """Run a dashboard while this lasts; its Serve listens on `port` of this machine, so that the port is not checked."""
    dashboard = ServeDashboard(port)

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = json.dumps(dashboard.handle(self.command, self.path, json.loads(body or b"null")))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer.encode())

        do_GET = do_PUT = do_DELETE = _respond

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    dashboard.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield dashboard
    finally:
        server.shutdown()
        server.server_close()
