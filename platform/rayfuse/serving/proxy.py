"""The HTTP proxy of Ray Serve as Rayfuse runs it. Serve's proxies call `configure` when they start.

- They bind with SO_REUSEADDR, so that a port can be used again at once, and not with SO_REUSEPORT, so that two
  programs cannot share one.
- Connections whose headers never end are closed.
- `/-/routes`, which lists all endpoints, responds to this machine only. `/-/healthz` is open, for Kubernetes' probes.
"""

from starlette.middleware import Middleware
from starlette.types import Scope

from rayfuse import ray_patches
from rayfuse.serving.local_access import LocalOnly

_HTTP_PROTOCOL = "rayfuse.serving.http_protocol:HeaderLimitProtocol"
_ROUTES_PATH = "/-/routes"


def configure() -> list[Middleware]:
    """Change the HTTP server of this process before it starts, and return its middleware."""
    ray_patches.bind_with_reuse_address()
    ray_patches.use_http_protocol(_HTTP_PROTOCOL)
    return [Middleware(LocalOnly, applies=_is_private, remedy="run `rayfuse serve status` on its cluster")]


def _is_private(scope: Scope) -> bool:
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) == _ROUTES_PATH
