"""The OpenAPI document of an endpoint, and its docs page."""

from collections.abc import Callable
from typing import Any

import pytest
from endpoints import problem_of
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serving import swagger_ui
from rayfuse.serving.openapi import build_openapi
from rayfuse.serving.settings import hash_api_key


def test_the_document_is_valid_openapi(predictor: Predictor) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(
        build_openapi(predictor.job, {"name": "tiny", "version": 3}, "/tiny", requires_api_key=True)
    )


def test_the_examples_are_valid_requests(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert set(content["examples"]) == {"one", "required", "several"}
    for example in content["examples"].values():
        assert client.post("/predict", json=example["value"]).status_code == 200


def test_inputs_and_outputs_are_those_of_the_model(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert list(schemas["Inputs"]["properties"]) == ["image", "text", "audio"]
    assert schemas["Inputs"]["required"] == ["image", "text"]
    assert schemas["Response"]["properties"]["outputs"]["properties"]["answer"]["properties"]["label"]["enum"]


def test_null_is_allowed_where_the_endpoint_allows_it(client: TestClient, all_inputs: dict[str, Any]) -> None:
    """Optional inputs may be null; required ones may not."""
    document = client.get("/openapi.json").json()
    validator = Draft202012Validator({**document, "$ref": "#/components/schemas/Request"})
    for name, valid in (("audio", True), ("image", False), ("text", False)):
        request = {"inputs": {**all_inputs, name: None}}
        assert validator.is_valid(request) is valid, name
        assert client.post("/predict", json=request).is_success is valid, name


def test_lists_state_their_maximum(client: TestClient, all_inputs: dict[str, Any]) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    instances = schemas["BatchRequest"]["properties"]["instances"]
    assert "at most 16" in instances["description"]
    too_many = [{"inputs": all_inputs}] * (instances["maxItems"] + 1)
    problem_of(client.post("/predict", json={"instances": too_many}), 413, f"{instances['maxItems'] + 1}")


def test_api_keys_are_required_and_not_exposed(build: Callable[..., TestClient]) -> None:
    hashed = hash_api_key("secret")
    text = build(keys=(hashed,)).get("/openapi.json").text
    assert '"security":[{"key":[]}]' in text
    assert hashed not in text


def test_the_docs_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
    page = client.get("/docs")
    assert "http" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png", swagger_ui.INITIALIZER_FILE):
        assert client.get(f"/docs/{name}").status_code == 200, name
        assert f"/docs/{name}" in page.text


def test_the_page_at_the_root_loads_nothing_from_other_hosts(client: TestClient) -> None:
    page = client.get("/")
    assert "http" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("try.js", "try.css"):
        assert f"/try/{name}" in page.text
        asset = client.get(f"/try/{name}")
        assert asset.status_code == 200, name
        assert "http" not in asset.text.replace("HTTPS", "")
    assert client.get("/try/try.html").status_code == 404
