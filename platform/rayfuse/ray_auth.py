"""Token authentication of Ray clusters, always on in those that Rayfuse starts.

Without these settings Ray uses the token file in the user's home, if any, so that two clusters on one machine may share
a token or have none.
"""

import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path


def ensure_token(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RAY_AUTH_MODE=token and a new RAY_AUTH_TOKEN, unless a token is set or RAY_AUTH_MODE is disabled.

    Must run before ray is imported; child processes inherit the variables.
    """
    if environment.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    if not (environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token for a cluster, found as Ray does; None where there is none.

    Order: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, the file ~/.ray/auth_token.
    """
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
