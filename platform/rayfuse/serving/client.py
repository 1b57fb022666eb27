"""HTTP client of an endpoint. Imports httpx only: no Ray, no torch."""

import json
import random
import time
from collections.abc import Mapping
from typing import Any

import httpx

from rayfuse.errors import InvalidInputError, RayfuseError, SpecError, UnavailableError

_JSON = "application/json"
_ANY_FILE = "application/octet-stream"
"""Media type of all other files: the endpoint recognizes their format by the content, and names have many types."""
_UNAVAILABLE_STATUSES = (401, 403, 404, 405, 421)
_OVERLOADED_STATUSES = (429, 503)


MODEL_EXTENSION = "x-rayfuse-model"
"""Member of an endpoint's OpenAPI document that describes its model for clients."""


VOICE_KIND = "voice"
"""`kind` of a voice in that member; other models have none."""


class MultipleValues(list[Any]):
    """Several values of one input whose `max_items` is above 1."""


def predict(
    url: str,
    values: Mapping[str, Any],
    api_key: str | None = None,
    timeout: float = 120.0,
    explain: bool = False,
    retry_for: float = 0.0,
) -> dict[str, Any]:
    """POST one instance as multipart/form-data to an endpoint and return the response body.

    `url` is the endpoint's route or its /predict. `values` maps input names to bytes or (file name, bytes) for files, a
    text, or a JSON value (also in a file that ends in .json), and to MultipleValues of these for an input with max_items above 1. With `explain` the body
    also has an explanation. For `retry_for` seconds, a request is repeated while the endpoint is overloaded or cannot be
    connected to. Raises InvalidInputError where the endpoint rejects an input, SpecError where it rejects
    the request, UnavailableError where it is unreachable or denies access.
    """
    fields = multipart_fields(values)
    if explain:
        fields.append(("explain", (None, b"true", "text/plain")))
    target = predict_url(url)
    content = _parse_response(target, _request("POST", target, api_key, timeout, retry_for, files=fields))
    if "outputs" not in content:
        raise _not_an_endpoint(target)
    return content


def describe_model(url: str, api_key: str | None = None, timeout: float = 30.0) -> dict[str, Any]:
    """Return the model of an endpoint: `name`, `version`, `inputs` and `tasks`.

    Raises UnavailableError as `predict`, and SpecError for a voice.
    """
    target = predict_url(url).removesuffix("/predict") + "/openapi.json"
    content = _parse_response(target, _request("GET", target, api_key, timeout))
    if not isinstance(content.get(MODEL_EXTENSION), dict):
        raise _not_an_endpoint(target)
    described: dict[str, Any] = content[MODEL_EXTENSION]
    if described.get("kind") == VOICE_KIND:
        raise SpecError(
            f"{url}: a voice, which makes no predictions; call its /v1/audio/speech, as with OpenAI's client"
        )
    return described


def _request(
    method: str, target: str, api_key: str | None, timeout: float, retry_for: float = 0.0, **options: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    deadline = time.monotonic() + retry_for
    while True:
        try:
            response = httpx.request(
                method, target, headers=headers, timeout=timeout, trust_env=False, **options
            )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            if not isinstance(error, httpx.NetworkError) or time.monotonic() >= deadline:
                reason = str(error) or type(error).__name__
                raise UnavailableError(
                    f"{target} is unreachable ({reason}); check the URL, or `rayfuse serve status` for those that are up"
                ) from None
            wait = 1.0
        else:
            if response.is_success:
                return response
            if response.status_code not in _OVERLOADED_STATUSES or time.monotonic() >= deadline:
                raise _to_error(target, response, bool(api_key))
            wait = _retry_after(response)
        time.sleep(wait * random.uniform(0.5, 1.5))


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that an overloaded endpoint asks to wait; 1 if it does not."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 1.0


def predict_url(url: str) -> str:
    """Return the address of an endpoint's /predict, given its route, /docs or /openapi.json."""
    base = url.rstrip("/")
    for page in ("/predict", "/docs", "/openapi.json"):
        base = base.removesuffix(page)
    return f"{base}/predict"


MultipartField = tuple[str | None, Any, str]
"""A part in httpx's form: (file name, content, media type)."""


def multipart_fields(values: Mapping[str, Any]) -> list[tuple[str, MultipartField]]:
    """Return the parts of a form, by input; an input with several values has one part each."""
    return [
        (name, _multipart_field(name, one))
        for name, value in values.items()
        for one in (value if isinstance(value, MultipleValues) else [value])
    ]


def _multipart_field(name: str, value: Any) -> MultipartField:
    if isinstance(value, tuple):
        filename, content = value
        return filename, content, _JSON if filename.lower().endswith(".json") else _ANY_FILE
    if isinstance(value, bytes):
        return name, value, _ANY_FILE
    if isinstance(value, str):
        return None, value.encode("utf-8"), "text/plain"
    return None, json.dumps(value).encode("utf-8"), _JSON


def _to_error(target: str, response: httpx.Response, with_key: bool) -> RayfuseError:
    problem = _problem(response)
    status, detail = response.status_code, problem["detail"]
    if status == 401:
        reason = "the API key was rejected" if with_key else "an API key is required"
        return UnavailableError(f"{target}: {reason}; set RAYFUSE_API_KEY to one of the endpoint's keys")
    if status in _UNAVAILABLE_STATUSES:
        return UnavailableError(f"{target}: {status}: {detail}")
    if "input" in problem:
        return InvalidInputError(detail.removeprefix(f"{problem['input']}: "), problem["input"])
    if 400 <= status < 500 and status != 429:
        return SpecError(detail)
    return RayfuseError(f"{target}: {status}: {detail}")


def _problem(response: httpx.Response) -> dict[str, str]:
    """Return the string members of a problem (RFC 9457); for another body only `detail`."""
    try:
        members = dict(response.json())
    except (ValueError, TypeError):
        members = {}
    detail = response.text.strip()[:200] or response.reason_phrase
    return {"detail": detail} | {key: value for key, value in members.items() if isinstance(value, str)}


def _parse_response(target: str, response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _not_an_endpoint(target)
    return content


def _not_an_endpoint(target: str) -> UnavailableError:
    return UnavailableError(f"{target}: not an endpoint of Rayfuse; check the URL")
