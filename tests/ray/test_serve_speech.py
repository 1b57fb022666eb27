"""An endpoint of a voice on a real Ray Serve, with OpenAI's client."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import tiny_voice
from endpoints import replica_metrics
from openai import OpenAI
from waiting import wait_for

from rayfuse.api.serving import speech_curl_command
from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.registry.download import ModelSource
from rayfuse.serving import deploy
from rayfuse.serving.dashboard import Dashboard
from rayfuse.serving.serve_config import EndpointStatus
from rayfuse.spec.load import validate_spec
from rayfuse.spec.service import Service
from rayfuse.speech.voice import Voice

TEXT = "The next train leaves at ten. Mind the gap! It is late."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_voice.make_voice(tmp_path_factory.mktemp("voice"), name="joe")


@pytest.fixture(scope="module")
def endpoint(ray_cluster: LocalCluster, folder: Path) -> Iterator[EndpointStatus]:
    dashboard, port = Dashboard(ray_cluster.dashboard_url, ray_cluster.token), local.free_ports(1)[0]
    content = {"kind": "service", "name": "speech", "model": "/m", "port": port}
    service = validate_spec(content, Service, "test.yaml")
    yield deploy.deploy(service, ModelSource(str(folder), name="joe", version=2), dashboard)
    dashboard.shutdown_serve()


@pytest.fixture(scope="module")
def client(endpoint: EndpointStatus) -> Iterator[OpenAI]:
    http = httpx.Client(trust_env=False, timeout=240)
    with OpenAI(base_url=f"{endpoint.url}/v1", api_key="any", max_retries=0, http_client=http) as opened:
        yield opened


def test_speech_whole_and_in_pieces(client: OpenAI, endpoint: EndpointStatus, folder: Path) -> None:
    assert endpoint.model == {"name": "joe", "version": 2}
    assert [model.id for model in client.models.list()] == ["joe"]
    voice = Voice(folder)
    speech = client.audio.speech.create(model="joe", voice="joe", input="one two", response_format="wav")
    samples, rate = soundfile.read(io.BytesIO(speech.content), dtype="float32")
    assert rate == voice.sample_rate
    assert np.allclose(samples, voice.synthesize(voice.phonemes("one two")), atol=1e-4)
    with client.audio.speech.with_streaming_response.create(
        model="joe", voice="joe", input=TEXT, response_format="pcm"
    ) as response:
        pieces = list(response.iter_bytes())
    whole = client.audio.speech.create(model="joe", voice="joe", input=TEXT, response_format="pcm")
    assert b"".join(pieces) == whole.content
    assert len(pieces) > 1


def test_errors_and_the_curl_command(endpoint: EndpointStatus) -> None:
    response = httpx.post(
        f"{endpoint.url}/v1/audio/speech", json={"model": "joe", "input": "…"}, trust_env=False
    )
    assert response.status_code == 400
    assert "no character that can be spoken" in response.json()["error"]["message"]
    command = speech_curl_command(endpoint)
    assert command.startswith("curl -o speech.wav -H")
    assert command.endswith(f"{endpoint.url}/v1/audio/speech")


def test_metrics_for_prometheus(client: OpenAI, ray_cluster: LocalCluster) -> None:
    def total(name: str) -> float:
        return sum(sample.value for sample in replica_metrics(ray_cluster, f"rayfuse_{name}"))

    client.audio.speech.create(model="joe", voice="joe", input=TEXT)
    wait_for(lambda: total("speech_characters_total") >= len(TEXT))  # Ray exports metrics now and then
    speeches = replica_metrics(ray_cluster, "rayfuse_speeches_total")
    assert {sample.labels["application"] for sample in speeches} == {"speech"}
    assert "stop" in {sample.labels["finish_reason"] for sample in speeches}
    for name in (
        "speech_audio_seconds_total",
        "time_to_first_audio_seconds_count",
        "speech_real_time_factor_count",
    ):
        assert total(name) > 0
