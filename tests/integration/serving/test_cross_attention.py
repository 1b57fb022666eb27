"""Endpoints of models that attend to their inputs: texts, streams and chats, with and without an image."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_jobs
import tiny_language_models
from endpoints import b64
from starlette.testclient import TestClient

from rayfuse.errors import ResourceError
from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine, warm_up
from rayfuse.serving.settings import Settings
from rayfuse.spec.service import GenerationLimits

QUESTION = "which colour is it?"
SETTINGS = Settings(model="tiny", version=3, batch_wait_timeout=0.0)


def make_predictor(folder: Path, **inject: Any) -> Predictor:
    tiny_generation.make_rows(folder)
    tiny_language_models.randomize(tiny_language_models.qwen(folder / "qwen"))
    options = {"inputs.text.max_tokens": 32, "inputs.image.encoder": tiny_generation.PATCHES}
    own = {**tiny_generation.CROSS_ATTENTION["inject"], **inject}
    job = tiny_generation.generation_job(folder, "qwen", {"inject": own, "prompt": "{text}"}, **options)
    predictor = Predictor(tiny_jobs.make_model_folder(folder, 0, job=job))
    tiny_generation.open_gates(predictor.model)
    return predictor


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return make_predictor(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    engine = InferenceEngine(predictor, SETTINGS, generation=GenerationLimits(max_num_seqs=3))
    warm_up(predictor)
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        yield client
    engine.texts.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    return [tiny_jobs.write_image(folder / f"{one}.png", one).read_bytes() for one in tiny_jobs.COLOURS]


def predict(client: TestClient, inputs: dict[str, Any], **more: Any) -> Any:
    values = {name: b64(value) if name == "image" else value for name, value in inputs.items()}
    return client.post("/predict", json={"inputs": values, **more})


def test_requests_that_share_the_decoder_get_the_texts_of_the_model(
    client: TestClient, predictor: Predictor, images: list[bytes]
) -> None:
    requests = [{"text": QUESTION, "image": image} for image in images] * 2
    requests += [{"text": QUESTION}, {"image": images[0]}]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: predict(client, one).json()["outputs"]["answer"]["text"], requests))
    assert found == [predictor.predict([one])[0]["outputs"]["answer"]["text"] for one in requests]
    assert len(set(found)) > 2
    last = predict(client, requests[0], stream=True).text.strip().rpartition("data: ")[2]
    assert json.loads(last)["outputs"]["answer"]["text"] == found[0]


@pytest.mark.parametrize("inputs", [[], None], ids=["alone", "with the image"])
def test_texts_from_the_fused_vector_are_those_of_the_model(
    inputs: list[str] | None, tmp_path: Path, images: list[bytes]
) -> None:
    predictor = make_predictor(tmp_path, inputs=inputs, fused=True)
    engine = InferenceEngine(predictor, SETTINGS, generation=GenerationLimits(max_num_seqs=2))
    requests = [{"text": QUESTION, "image": image} for image in images]
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        found = [predict(client, one).json()["outputs"]["answer"]["text"] for one in requests]
    engine.texts.close()
    assert found == [predictor.predict([one])[0]["outputs"]["answer"]["text"] for one in requests]
    assert len(set(found)) > 1


def test_a_chat_reads_its_image(client: TestClient, images: list[bytes]) -> None:
    def ask(*parts: Any) -> Any:
        content = [{"type": "text", "text": QUESTION}, *parts]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        return client.post("/v1/chat/completions", json=body).json()

    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(images[0])['b64']}"}}
    with_image, without = ask(image), ask()
    assert with_image["choices"][0]["message"]["content"] != without["choices"][0]["message"]["content"]
    # The image takes no positions of the prompt.
    assert with_image["usage"]["prompt_tokens"] == without["usage"]["prompt_tokens"]


def test_the_keys_and_values_of_inputs_count_towards_the_memory(predictor: Predictor) -> None:
    def slots(memory: int) -> int:
        engine = InferenceEngine(
            predictor, SETTINGS, generation=GenerationLimits(kv_cache_memory=memory, max_model_len=32)
        )
        engine.texts.close()
        return engine.texts.tasks["answer"].decoder.slots

    text = 32 * 2 * 2 * 8 * 4  # positions, layers, keys and values, head width, bytes
    image = 4 * 2 * 2 * 2 * 8 * 4  # patches, layers, keys and values, heads, head width, bytes
    assert slots(2 * (text + image)) == 2
    assert slots(2 * (text + image) - 1) == 1
    with pytest.raises(ResourceError, match="key–value cache of one slot"):
        slots(text + image - 1)
