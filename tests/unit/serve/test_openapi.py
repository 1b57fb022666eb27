"""The description of an endpoint holds for the endpoint."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from rayfuse.modalities import MODALITIES
from rayfuse.model.predictor import Predictor
from rayfuse.serve import docs
from rayfuse.serve.openapi import EXAMPLES, describe
from rayfuse.serve.settings import digest


def test_it_is_openapi(predictor: Predictor) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(describe(predictor.job, {"name": "tiny", "version": 3}, "/tiny", keyed=True))


def test_its_examples_are_answered(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    content = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert set(content["examples"]) == {"one", "required", "several"}
    for example in content["examples"].values():
        assert client.post("/predict", json=example["value"]).status_code == 200


def test_inputs_and_answers_are_the_models_own(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert list(schemas["Inputs"]["properties"]) == ["image", "text", "audio"]
    assert schemas["Inputs"]["required"] == ["image", "text"]
    assert schemas["Reply"]["properties"]["outputs"]["properties"]["answer"]["properties"]["label"]["enum"]


def test_keys_are_asked_for_and_not_told(build: Callable[..., TestClient]) -> None:
    hashed = digest("secret")
    text = build(keys=(hashed,)).get("/openapi.json").text
    assert '"security":[{"key":[]}]' in text
    assert hashed not in text


def test_every_kind_of_input_has_an_example() -> None:
    assert set(EXAMPLES) == set(MODALITIES)


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert "http" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png", docs.START_FILE):
        assert client.get(f"/docs/{name}").status_code == 200, name
        assert f"/docs/{name}" in page.text


def test_the_root_leads_to_the_page(client: TestClient) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"
