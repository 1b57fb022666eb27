"""The route /v1/embeddings of an endpoint with a retrieval task, with OpenAI's client and a real sentence encoder."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from endpoints import serve_in_thread
from faq_index import PASSAGES, make_retriever
from openai import OpenAI

from rayfuse.model.predictor import Predictor

TEXTS = [str(row["text"]) for row in PASSAGES]
MODEL = "faq/find/text"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(make_retriever(tmp_path_factory.mktemp("faq")))


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    with serve_in_thread(predictor, "/faq") as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_embeddings_are_those_of_the_model(client: OpenAI, predictor: Predictor) -> None:
    found = client.embeddings.create(model=MODEL, input=TEXTS)  # which asks for base64
    expected = [
        one["outputs"]["find"]["embeddings"]["text"]
        for one in predictor.predict([{"text": text, "question": "a"} for text in TEXTS])
    ]
    assert np.allclose([one.embedding for one in found.data], expected, atol=1e-5)
    assert [one.index for one in found.data] == [0, 1, 2, 3]
    assert (
        found.usage.prompt_tokens
        == found.usage.total_tokens
        == sum(
            len(predictor.preprocess({"text": text, "question": "a"}).features["text"][0]["input_ids"])
            for text in TEXTS
        )
    )
    numbers = client.embeddings.create(
        model=MODEL, input=TEXTS[0], encoding_format="float", dimensions=384, user="u"
    )
    assert np.allclose(numbers.data[0].embedding, expected[0], atol=1e-5)


def test_a_question_is_nearest_to_its_answer(client: OpenAI) -> None:
    passages = client.embeddings.create(model=MODEL, input=TEXTS).data
    [question] = client.embeddings.create(model="faq/find/question", input="I forgot my PIN").data
    assert int(np.argmax([np.dot(question.embedding, one.embedding) for one in passages])) == 2


def test_models_and_the_openapi_document_name_them(client: OpenAI, url: str) -> None:
    assert [one.id for one in client.models.list()] == ["faq/find/question", MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert "/v1/chat/completions" not in paths
    body = paths["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"]["enum"] == ["faq/find/question", MODEL]
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "problem"),
    [
        ({"model": "faq"}, 404, "no model 'faq'; use one of: faq/find/question, faq/find/text"),
        ({"input": []}, 400, "0 texts; send between 1 and 1000"),
        ({"input": ["a", " "]}, 400, "the text is empty"),
        ({"input": [1, 2]}, 400, "input"),
        ({"dimensions": 3}, 400, "3 is not 384"),
        ({"encoding_format": "int8"}, 400, "encoding_format"),
        ({"dimension": 3}, 400, "unknown parameter 'dimension'; did you mean dimensions"),
    ],
)
def test_errors_are_in_the_form_of_openai(
    url: str, fields: dict[str, object], status: int, problem: str
) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"model": MODEL, "input": "a", **fields})
    assert response.status_code == status
    assert problem in response.json()["error"]["message"]


def test_a_model_without_retrieval_has_no_route(tmp_path: Path) -> None:
    import tiny_jobs

    with serve_in_thread(Predictor(tiny_jobs.make_model_folder(tmp_path, 0)), "/tiny") as url:
        assert httpx.post(f"{url}/v1/embeddings", json={}).status_code == 404


def test_openai_errors_are_exceptions_of_its_client(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.embeddings.create(model="other", input="a")
