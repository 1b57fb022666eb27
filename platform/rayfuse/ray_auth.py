"""Token authentication of Ray clusters: always on in those that we start, never left to chance.

Without these settings, Ray decides by what it finds in the user's home, so that two clusters on one
machine may share a token or have none.
"""

import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path


def ensure_token(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RAY_AUTH_MODE and a fresh RAY_AUTH_TOKEN unless the user has chosen a mode.

    Must run before ray is imported; child processes inherit it.
    """
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return
    environment["RAY_AUTH_MODE"] = "token"
    if not (environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token for a cluster, as Ray itself looks for it; None where there is none."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
