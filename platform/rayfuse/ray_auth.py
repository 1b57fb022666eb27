"""Token authentication of the Ray clusters that we start: always on, never left to chance.

Without these settings, Ray decides by what it finds in the user's home, so that two clusters on one
machine may share a token or have none.
"""

import os
import secrets
from collections.abc import MutableMapping


def ensure_token(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RAY_AUTH_MODE and a fresh RAY_AUTH_TOKEN unless the user has chosen a mode.

    Must run before ray is imported; child processes inherit it.
    """
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return
    environment["RAY_AUTH_MODE"] = "token"
    if not (environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
