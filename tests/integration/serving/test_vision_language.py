"""Endpoints of vision–language models, which read an image with their own image part."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_jobs
import tiny_vision_language_models
from endpoints import b64
from starlette.testclient import TestClient

from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine, warm_up
from rayfuse.serving.settings import Settings
from rayfuse.spec.service import GenerationLimits

QUESTION = "which colour is it?"
SETTINGS = Settings(model="tiny", version=3, batch_wait_timeout=0.0)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("vision")
    tiny_generation.make_rows(folder)
    job = tiny_vision_language_models.vision_job(folder, "smolvlm")
    return Predictor(tiny_jobs.make_model_folder(folder, 0, job=job))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    engine = InferenceEngine(predictor, SETTINGS, generation=GenerationLimits(max_num_seqs=3))
    warm_up(predictor)
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        yield client
    engine.texts.close()


def write_images(folder: Path) -> list[bytes]:
    return [tiny_jobs.write_image(folder / f"{one}.png", one).read_bytes() for one in tiny_jobs.COLOURS]


def shown(text: str) -> str:
    """Return a text without a character at its end that its last tokens do not complete."""
    return text.strip("\N{REPLACEMENT CHARACTER} \n")


def test_predictions_and_chats_that_share_the_decoder(
    client: TestClient, predictor: Predictor, tmp_path: Path
) -> None:
    def chat(image: bytes | None) -> Any:
        content: list[Any] = [{"type": "text", "text": QUESTION}]
        if image is not None:
            url = f"data:image/png;base64,{b64(image)['b64']}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        return client.post("/v1/chat/completions", json=body).json()

    def predict(image: bytes | None) -> Any:
        inputs: dict[str, Any] = {"text": QUESTION, **({} if image is None else {"image": b64(image)})}
        return client.post("/predict", json={"inputs": inputs}).json()

    images = [*write_images(tmp_path), None]
    with ThreadPoolExecutor(8) as pool:
        chats, predictions = list(pool.map(chat, images)), list(pool.map(predict, images))
    rows = [{"text": QUESTION, **({} if image is None else {"image": image})} for image in images]
    wanted = [shown(row["outputs"]["answer"]["text"]) for row in predictor.predict(rows)]
    assert [shown(one["outputs"]["answer"]["text"]) for one in predictions] == wanted
    assert [shown(one["choices"][0]["message"]["content"]) for one in chats] == wanted
    assert len(set(wanted)) == len(images)
    with_image, without = chats[0]["usage"]["prompt_tokens"], chats[-1]["usage"]["prompt_tokens"]
    assert with_image - without == 4 + 3  # tokens of an image, and the special tokens around it
