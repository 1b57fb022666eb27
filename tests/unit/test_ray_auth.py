"""Token authentication by environment variables."""

from pathlib import Path

import pytest

from rayfuse.ray_auth import ensure_token, token


def test_a_new_token_is_set() -> None:
    one: dict[str, str] = {}
    other: dict[str, str] = {}
    ensure_token(one)
    ensure_token(other)
    assert one["RAY_AUTH_MODE"] == "token"
    assert len(one["RAY_AUTH_TOKEN"]) == 64
    assert one["RAY_AUTH_TOKEN"] != other["RAY_AUTH_TOKEN"]
    assert token(one) == one["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    "chosen",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "k8s"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray"},
    ],
)
def test_settings_of_the_user_are_unchanged(chosen: dict[str, str]) -> None:
    environment = dict(chosen)
    ensure_token(environment)
    assert environment == chosen


def test_the_token_is_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "secret"
    assert token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}) is None
    assert token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}) is None
