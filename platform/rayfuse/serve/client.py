"""Ask an endpoint over HTTP. Needs httpx alone: no Ray, no torch."""

import json
import mimetypes
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from rayfuse.errors import NotReachable, RayfuseError, SpecError

_REFUSED = (401, 403, 404, 405)


class Several(list[Any]):
    """The values of one input that takes several."""


def ask(
    url: str, values: Mapping[str, Any], key: str | None = None, timeout: float = 120.0
) -> dict[str, Any]:
    """POST one instance to the endpoint at `url` (its route, or its /predict) as multipart/form-data.

    `values` holds bytes or (file name, bytes) for files, a text, or anything that JSON holds; Several of these for an
    input that takes several. Raises SpecError where the endpoint finds fault with an input, NotReachable where it does
    not answer or does not let us in.
    """
    target = predict_url(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(target, files=_parts(values), headers=headers, timeout=timeout, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise NotReachable(f"{target} does not answer ({_why(error)})") from None
    if not response.is_success:
        raise _error(target, response, bool(key))
    return _json(target, response)


def predict_url(url: str) -> str:
    """The address to POST to, from an endpoint's route or any address below it that people copy."""
    base = url.rstrip("/")
    for page in ("/predict", "/docs", "/openapi.json"):
        base = base.removesuffix(page)
    return f"{base}/predict"


_Part = tuple[str | None, Any, str]
"""As httpx wants it: (file name, content, media type)."""


def _parts(values: Mapping[str, Any]) -> list[tuple[str, _Part]]:
    return [
        (name, _part(name, one))
        for name, value in values.items()
        for one in (value if isinstance(value, Several) else [value])
    ]


def _part(name: str, value: Any) -> _Part:
    if isinstance(value, tuple):
        filename, content = value
        return filename, content, mimetypes.guess_type(filename)[0] or "application/octet-stream"
    if isinstance(value, bytes):
        return name, value, "application/octet-stream"
    if isinstance(value, str):
        return None, value.encode("utf-8"), "text/plain"
    return None, json.dumps(value).encode("utf-8"), "application/json"


def _error(target: str, response: httpx.Response, with_key: bool) -> RayfuseError:
    status, detail = response.status_code, _detail(response)
    if status == 401:
        remedy = "it does not take this key" if with_key else "set RAYFUSE_API_KEY to one of its keys"
        return NotReachable(f"{target}: an API key is needed; {remedy}")
    if status in _REFUSED:
        return NotReachable(f"{target}: {status}: {detail}")
    if 400 <= status < 500 and status != 429:
        return SpecError(detail)
    return RayfuseError(f"{target}: {status}: {detail}")


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:200] or response.reason_phrase


def _json(target: str, response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict) or "outputs" not in content:
        raise NotReachable(f"{target}: answers, but not as an endpoint of Rayfuse")
    return content


def _why(error: Exception) -> str:
    host = "refused" if isinstance(error, httpx.ConnectError) else type(error).__name__
    return str(error) or host


def is_endpoint(text: str) -> bool:
    """Whether a user means an endpoint and not a model."""
    return urlsplit(text).scheme in ("http", "https")
