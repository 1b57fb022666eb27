"""Specs are stored next to runs and in MLflow, and errors end up in logs: neither may hold a secret."""

from pathlib import Path
from typing import Any

import pytest

from rayfuse.errors import SpecError
from rayfuse.spec.load import load_spec, validate_spec
from rayfuse.spec.service import Service

SERVICE: dict[str, Any] = {"kind": "service", "name": "tiny", "model": "models:/tiny@champion"}


def service(**fields: Any) -> Service:
    return validate_spec(SERVICE | fields, Service, "serve/x.yaml")


def error_of(**fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        service(**fields)
    return str(caught.value)


def test_keys_are_read_and_not_exposed() -> None:
    spec = service(auth={"keys": "first-secret-key, other-secret-key,"})
    assert [key.get_secret_value() for key in spec.auth.keys] == ["first-secret-key", "other-secret-key"]
    shown = f"{spec!r} {spec} {spec.model_dump(mode='json')} {spec.model_dump_json()}"
    assert "first-secret-key" not in shown
    assert "other-secret-key" not in shown


def test_an_empty_variable_gives_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"kind: service\nname: tiny\nmodel: {SERVICE['model']}\nauth: {{keys: '${{KEYS:-}}'}}\n")
    assert load_spec(path, Service, environment={}).auth.keys == []
    assert (
        len(load_spec(path, Service, environment={"KEYS": "first-secret-key,other-secret-key"}).auth.keys)
        == 2
    )


@pytest.mark.parametrize(
    "auth",
    [
        {"keys": ["hush-1", 12345]},
        {"keys": {"hush": 12345}},
        {"keys": 12345},
        {"key": "hush"},
        "hush",
        ["hush"],
    ],
)
def test_error_messages_do_not_contain_keys(auth: Any) -> None:
    message = error_of(auth=auth)
    assert message.startswith("serve/x.yaml: auth")
    assert "hush" not in message
    assert "12345" not in message


@pytest.mark.parametrize("key", ["", "  ", "**********"])
def test_empty_or_masked_keys_are_rejected(key: str) -> None:
    expected = "serve/x.yaml: auth.keys: a key is empty or only asterisks; set the keys again"
    assert error_of(auth={"keys": [key]}) == expected


@pytest.mark.parametrize("key", ["fifteen-letters", "a key with blanks", "schlüssel-schlüssel"])
def test_keys_that_are_easy_to_guess_or_not_ascii_are_rejected(key: str) -> None:
    assert error_of(auth={"keys": [key]}) == (
        "serve/x.yaml: auth.keys: a key is not 16 or more visible ASCII characters; make one with `openssl rand -hex 24`"
    )


@pytest.mark.parametrize("written", ["${RAYFUSE-API-KEYS}", "${RAYFUSE_API_KEYS", "${RAYFUSE_API_KEYS-}"])
def test_a_misspelled_variable_is_no_key(tmp_path: Path, written: str) -> None:
    assert "auth.keys: a key looks like a variable" in error_of(auth={"keys": written})
    path = tmp_path / "s.yaml"
    path.write_text(f"kind: service\nname: tiny\nmodel: {SERVICE['model']}\nauth: {{keys: '{written}'}}\n")
    with pytest.raises(SpecError, match=r"auth\.keys: `\$\{RAYFUSE.* is not a variable"):
        load_spec(path, Service, environment={"RAYFUSE_API_KEYS": "first-secret-key"})


def test_masked_keys_of_a_saved_service_are_rejected() -> None:
    stored = service(auth={"keys": "first-secret-key"}).model_dump(mode="json")
    with pytest.raises(SpecError, match="asterisks"):
        validate_spec(stored, Service, "stored")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hush@bucket/rows",
        "s3://AKIA:hush/with/slashes@bucket/rows",
        "https://hush@host/rows",
        "postgresql://ann:hush@host:5432/mlflow",
        "simplecache::s3://AKIA:hush@bucket/rows",
        "https://host/rows?sv=1&sig=hush",
        "https://bucket.host/rows?X-Amz-Signature=hush",
        "https://host/rows?access_token=hush",
        "https://host/rows?api_key=hush",
    ],
)
def test_urls_with_credentials_are_rejected_and_not_exposed(url: str) -> None:
    message = error_of(tracking_uri=url)
    assert message == (
        "serve/x.yaml: tracking_uri: contains credentials, and specs are stored; pass them in environment variables"
    )


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account.dfs.core.windows.net/rows",
        "sftp://ann@host/rows",
        "http://mlflow:5000/path@x",
        "hf://datasets/org/name@main/rows",
        "https://host/rows?version=3",
        "/a/folder@home",
    ],
)
def test_an_at_sign_is_not_a_credential(url: str) -> None:
    assert service(tracking_uri=url).tracking_uri == url
