"""Endpoints of generation tasks on a real Ray Serve, with OpenAI's client."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import tiny_generation
import tiny_jobs
import tiny_language_models
from endpoints import b64, replica_metrics
from openai import OpenAI
from waiting import wait_for

from rayfuse.api.serving import openai_curl_command
from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.model.predictor import Predictor
from rayfuse.registry.download import ModelSource
from rayfuse.serving import deploy
from rayfuse.serving.dashboard import Dashboard
from rayfuse.serving.serve_config import EndpointStatus
from rayfuse.spec.load import validate_spec
from rayfuse.spec.service import Service

QUESTION = "which colour is it?"
LONG, LENGTH = 2000, 500
POSITIONS = 8192
Bring = Callable[..., EndpointStatus]


def make_model(folder: Path, seed: int) -> Path:
    """Return a model whose greedy texts end at `max_tokens` only: the logits of its end tokens are 0."""
    import torch
    from transformers import AutoModelForCausalLM

    tiny_generation.make_rows(folder)
    path = tiny_language_models.randomize(tiny_language_models.qwen(folder / "qwen"), seed=seed)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.max_position_embeddings = POSITIONS
    with torch.no_grad():
        model.lm_head.weight[256:] = 0
    model.save_pretrained(path)
    job = tiny_generation.generation_job(folder, "qwen", **{"inputs.text.max_tokens": 32})
    return tiny_jobs.make_model_folder(folder, 0, job=job)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_model(tmp_path_factory.mktemp(f"model{seed}"), seed) for seed in (7, 8)]


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_jobs.write_image(tmp_path_factory.mktemp("image") / "a.png", "green").read_bytes()


@pytest.fixture(scope="module")
def bring(ray_cluster: LocalCluster, folders: list[Path]) -> Iterator[Bring]:
    """Deploy a version of the model with two slots."""
    dashboard, port = Dashboard(ray_cluster.dashboard_url, ray_cluster.token), local.free_ports(1)[0]
    limits = {"max_num_seqs": 2, "max_model_len": POSITIONS, "max_queued_tokens": 3 * LONG}

    def up(version: int = 1) -> EndpointStatus:
        content = {"kind": "service", "name": "tiny", "model": "/m", "port": port, "generation": limits}
        content["limits"] = {"request_timeout": "240s"}
        service = validate_spec(content, Service, "test.yaml")
        source = ModelSource(str(folders[version - 1]), name="tiny", version=version)
        return deploy.deploy(service, source, dashboard)

    yield up
    dashboard.shutdown_serve()


@pytest.fixture(scope="module")
def endpoint(bring: Bring) -> EndpointStatus:
    return bring()


@pytest.fixture(scope="module")
def client(endpoint: EndpointStatus) -> Iterator[OpenAI]:
    http = httpx.Client(trust_env=False, timeout=240)
    with OpenAI(base_url=f"{endpoint.url}/v1", api_key="any", max_retries=0, http_client=http) as opened:
        yield opened


def messages(text: str, content: bytes | None = None) -> Any:
    parts: list[Any] = [{"type": "text", "text": text}]
    if content is not None:
        data = base64.b64encode(content).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return [{"role": "user", "content": parts}]


def long_text(length: int = LENGTH) -> dict[str, Any]:
    """Return the options of a request whose text has `length` tokens."""
    return {"model": "tiny", "messages": messages(QUESTION), "max_tokens": length, "temperature": 0}


def shown(text: str) -> str:
    return text.strip("\N{REPLACEMENT CHARACTER} \n")


def test_a_dialogue_plain_and_streamed(client: OpenAI, folders: list[Path], png: bytes) -> None:
    [expected] = Predictor(folders[0]).predict([{"text": QUESTION, "image": png}])
    asked = messages(QUESTION, png)
    plain = client.chat.completions.create(model="tiny", messages=asked)
    assert shown(plain.choices[0].message.content) == shown(expected["outputs"]["answer"]["text"])
    chunks = list(client.chat.completions.create(model="tiny", messages=asked, stream=True))
    assert len(chunks) > 3
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_prediction_and_its_stream(endpoint: EndpointStatus, png: bytes) -> None:
    body = {"inputs": {"text": QUESTION, "image": b64(png)}}
    plain = httpx.post(endpoint.predict_url, json=body, trust_env=False, timeout=300).json()
    streamed = httpx.post(endpoint.predict_url, json={**body, "stream": True}, trust_env=False, timeout=300)
    name, data = streamed.text.strip().rpartition("\n\n")[2].split("\n")
    assert name == "event: prediction"
    assert json.loads(data.removeprefix("data: "))["outputs"] == plain["outputs"]


def test_metrics_for_prometheus(client: OpenAI, ray_cluster: LocalCluster) -> None:
    done = client.chat.completions.create(**long_text(30))
    found = wait_for(lambda: replica_metrics(ray_cluster, "rayfuse_generation_tokens_total"))
    assert done.usage.completion_tokens == 30
    assert sum(sample.value for sample in found) >= 30
    tags = found[0].labels
    assert (tags["application"], tags["deployment"], tags["task"]) == ("tiny", "Endpoint", "answer")
    for name in ("time_to_first_token_seconds", "time_per_output_token_seconds"):
        counts = replica_metrics(ray_cluster, f"rayfuse_{name}_count")
        assert sum(sample.value for sample in counts) >= 1
    reasons = {
        sample.labels["finish_reason"] for sample in replica_metrics(ray_cluster, "rayfuse_replies_total")
    }
    assert "length" in reasons


def test_a_text_of_a_json_schema(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "switch", "schema": {**schema, "additionalProperties": False}},
    }
    asked: Any = {"model": "tiny", "messages": messages(QUESTION), "response_format": form}
    done = client.chat.completions.create(**asked, max_tokens=20)
    jsonschema.validate(json.loads(done.choices[0].message.content), schema)
    with pytest.raises(openai.BadRequestError, match="tokens are too few"):
        client.chat.completions.create(**asked, max_tokens=3)


def test_errors_have_the_form_of_openai(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'robot' is no role"):
        client.chat.completions.create(model="tiny", messages=[{"role": "robot", "content": "a"}])
    with pytest.raises(openai.UnprocessableEntityError, match="image: ") as raised:
        client.chat.completions.create(model="tiny", messages=messages("a", b"no image"))
    assert raised.value.body["param"] == "image"
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.embeddings.create(model="tiny", input="a")


def test_a_client_that_leaves_frees_its_slot(client: OpenAI) -> None:
    """Of two slots one is in use by a long text, so that a third request needs that of the client that left."""
    running = client.chat.completions.create(**long_text(LONG), stream=True)
    leaving = client.chat.completions.create(**long_text(LONG), stream=True)
    for stream in (running, leaving):
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
    leaving.close()
    assert client.chat.completions.create(model="tiny", messages=messages(QUESTION), max_tokens=3).choices
    with pytest.raises(
        openai.RateLimitError, match="tokens are pending"
    ):  # those of the text that still runs
        client.chat.completions.create(**long_text(2 * LONG))
    running.close()


def test_a_text_ends_with_the_weights_that_it_began_with(
    client: OpenAI, bring: Bring, folders: list[Path], endpoint: EndpointStatus
) -> None:
    whole = client.chat.completions.create(**long_text()).choices[0].message.content
    stream = client.chat.completions.create(**long_text(), stream=True)
    begun = next(chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content)
    bring(2)
    [expected] = Predictor(folders[1]).predict([{"text": QUESTION}])
    found = httpx.post(
        endpoint.predict_url, json={"inputs": {"text": QUESTION}}, trust_env=False, timeout=300
    ).json()
    assert found["model"]["version"] == 2
    assert found["outputs"] == expected["outputs"]
    rest = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert begun + rest == whole
    assert client.chat.completions.create(**long_text()).choices[0].message.content != whole


def test_the_printed_command_is_complete(endpoint: EndpointStatus, folders: list[Path]) -> None:
    command = openai_curl_command(endpoint, Predictor(folders[0]).job)
    assert command is not None
    body = json.loads(command.split("-d '")[1].split("'")[0])
    body["messages"][0]["content"].pop()  # the image, whose data is a placeholder
    url = command.split()[-1]
    assert httpx.post(url, json=body, trust_env=False, timeout=300).is_success
