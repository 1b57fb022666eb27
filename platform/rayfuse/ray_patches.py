"""Changes to Ray's behavior: everything in Rayfuse that relies on its private attributes.

The attributes that the changes rely on are listed in `PATCHED_ATTRIBUTES`. They are checked before they are used, and a
test checks them in the installed version.
"""

import importlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from rayfuse.errors import RayfuseError

SUPPORTED_VERSIONS = ">=2.60,<2.61"
"""Versions of Ray that the patches were tested with, as in pyproject.toml."""

PATCHED_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "ray._private.ray_constants": ("ENABLE_RAY_CLUSTER", "ENABLE_RAY_CLUSTERS_ENV_VAR"),
    "ray._private.services": ("get_webui_url_from_internal_kv",),
    "ray._private.worker": ("listen_error_messages", "print_to_stdstream"),
    "ray.experimental.internal_kv": ("_internal_kv_del", "_internal_kv_exists", "_internal_kv_put"),
    "ray.serve._private.replica": ("add_port_to_grpc_server",),
    "ray.serve._private.http_util": ("set_socket_reuse_port", "start_asgi_http_server"),
    "ray.train.torch.config": (
        "_TorchBackend",
        "_set_torch_distributed_env_vars",
        "_setup_torch_process_group",
    ),
    "uvicorn.config": ("HTTP_PROTOCOLS",),
}
"""Attributes that the patches set or call, by module."""

LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Environment of a Ray whose nodes are all on this machine: its processes then listen on loopback only.

On platforms with multi-node clusters Ray replaces 127.0.0.1 by an external address and listens on all interfaces.
"""

_LOOPBACK = "127.0.0.1"

SERVE_ENV = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayfuse.serving.proxy:configure",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.2",  # three failed checks replace a proxy; the default is 10 s
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",  # Serve then calls what `bind_with_reuse_address` replaces
}
"""Environment of the Ray nodes of an endpoint: each HTTP proxy of Serve calls `configure` when it starts."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let `ray.init` start a Ray that listens on loopback only, also where Ray was imported before."""
    constants = require("ray._private.ray_constants")
    before = {name: os.environ.get(name) for name in LOOPBACK_ENV}
    was_enabled, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(LOOPBACK_ENV)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = was_enabled
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def hide_node_messages() -> Callable[[], None]:
    """Stop printing what the nodes of a cluster publish, such as a large number of workers; return how to undo that.

    Ray prints it on the standard output of every driver, whatever its log options.
    """
    worker = require("ray._private.worker")
    before = worker.print_to_stdstream
    worker.print_to_stdstream = _print_nothing

    def restore() -> None:
        worker.print_to_stdstream = before

    return restore


def _print_nothing(*_: Any, **__: Any) -> None:
    """Print nothing."""


def is_on_loopback() -> bool:
    """Return whether the Ray that this process is connected to listens on loopback, so that it has one machine only."""
    import ray

    return str(ray.util.get_node_ip_address()) == _LOOPBACK


def current_dashboard_address() -> str | None:
    """Return the dashboard's address (host:port) of the Ray that this process is connected to; None without one.

    `ray.init` returns it too, but calling it again would change the caller's log level and handler of SIGTERM. In workers,
    `ray._private.worker.get_dashboard_url` returns an address also where there is no dashboard.
    """
    from ray.util.client import ray as ray_client

    if ray_client.is_connected():
        return None
    return require("ray._private.services").get_webui_url_from_internal_kv() or None


def bind_replica_to_loopback() -> None:
    """Let the gRPC server of a Serve replica in this process listen on loopback, where Ray does.

    It takes pickled requests without authentication, and listens on all interfaces otherwise.
    """
    replica = require("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server
    if is_on_loopback():
        replica.add_port_to_grpc_server = lambda server, address: add_port(
            server, address.replace("[::]", _LOOPBACK)
        )


def bind_with_reuse_address() -> None:
    """Let the HTTP server of Ray Serve in this process bind with SO_REUSEADDR.

    Serve binds with SO_REUSEPORT, with which two programs share the requests to a port, or without any option, with
    which a closed connection blocks the port for a minute.
    """
    http_util = require("ray.serve._private.http_util")

    def set_reuse_address(listener: socket.socket) -> bool:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return True

    http_util.set_socket_reuse_port = set_reuse_address


def use_http_protocol(import_path: str) -> None:
    """Let HTTP servers of uvicorn in this process handle connections with the protocol at `import_path`."""
    require("uvicorn.config").HTTP_PROTOCOLS["auto"] = import_path


def require(module_name: str) -> Any:
    """Return a module of Ray or of its HTTP server; raise RayfuseError if an attribute that Rayfuse relies on is gone."""
    module = importlib.import_module(module_name)
    missing = [name for name in PATCHED_ATTRIBUTES[module_name] if not hasattr(module, name)]
    if missing:
        raise RayfuseError(
            f"{module_name} next to Ray {version('ray')} has no {', '.join(missing)} that Rayfuse relies on; "
            f"install ray{SUPPORTED_VERSIONS}"
        )
    return module
