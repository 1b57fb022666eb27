"""The route /v1/audio/speech of an endpoint with a voice, with OpenAI's client."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
import tiny_voice
from endpoints import serve_app_in_thread
from openai import OpenAI
from starlette.applications import Starlette
from starlette.routing import Mount
from waiting import wait_for

from rayfuse import load_model
from rayfuse.errors import DataError, SpecError
from rayfuse.serving.metrics import EndpointMetrics, SpeechStats
from rayfuse.serving.settings import Settings, hash_api_key
from rayfuse.serving.speech_app import build_speech_app
from rayfuse.serving.speech_engine import MAX_CONSECUTIVE_FAILURES, SpeechEngine
from rayfuse.speech.voice import Samples, Voice

TEXT = "The next train leaves at ten. Mind the gap! It is late."


class Recorded(EndpointMetrics):
    """Metrics that tests read."""

    def __init__(self) -> None:
        self.speeches: list[SpeechStats] = []

    def record_speech(self, stats: SpeechStats) -> None:
        self.speeches.append(stats)


class GatedVoice(Voice):
    """A voice whose sentences behind the first one wait for a gate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate = threading.Event()
        self.spoken: list[str] = []

    def phonemes(self, sentence: str) -> list[str]:
        if self.spoken:
            self.gate.wait(60)
        self.spoken.append(sentence)
        return super().phonemes(sentence)


@contextmanager
def serve(engine: SpeechEngine, route: str = "/tiny") -> Iterator[str]:
    app = Starlette(routes=[Mount(route, app=build_speech_app(engine))])
    with serve_app_in_thread(app) as url:
        yield f"{url}{route}"
    engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_voice.make_voice(tmp_path_factory.mktemp("voice"))


@pytest.fixture(scope="module")
def metrics() -> Recorded:
    return Recorded()


@pytest.fixture(scope="module")
def url(folder: Path, metrics: Recorded) -> Iterator[str]:
    with serve(SpeechEngine(Voice(folder), Settings(version=3), metrics=metrics)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def speak(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "input": "one two", "response_format": "wav", **fields}
    return httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60)


def expected_samples(folder: Path, text: str, speed: float = 1.0) -> Samples:
    """Return the samples of a text, with silence between its sentences."""
    voice = Voice(folder)
    silence = np.zeros(int(0.25 * voice.sample_rate / speed), dtype=np.float32)
    parts = [voice.synthesize(voice.phonemes(sentence), speed=speed) for sentence in voice.sentences(text)]
    joined = [part for sentence in parts for part in (silence, sentence)]
    return np.concatenate(joined[1:])


def test_the_sound_is_that_of_the_voice(client: OpenAI, folder: Path) -> None:
    for text, speed in (("one two", 1.0), (TEXT, 1.0), (TEXT, 2.0)):
        speech = client.audio.speech.create(
            model="tiny", voice="tiny", input=text, response_format="wav", speed=speed
        )
        assert speech.response.headers["content-type"] == "audio/wav"
        samples, rate = soundfile.read(io.BytesIO(speech.content), dtype="float32")
        assert rate == tiny_voice.SAMPLE_RATE
        assert np.allclose(samples, expected_samples(folder, text, speed), atol=1e-4)


@pytest.mark.parametrize(
    ("response_format", "media_type", "codec"),
    [
        ("mp3", "audio/mpeg", "mp3"),
        ("opus", "audio/ogg", "opus"),
        ("aac", "audio/aac", "aac"),
        ("flac", "audio/flac", "flac"),
        ("wav", "audio/wav", "pcm_s16le"),
    ],
)
def test_every_format_plays(
    client: OpenAI, folder: Path, response_format: Any, media_type: str, codec: str
) -> None:
    speech = client.audio.speech.create(
        model="tiny", voice="tiny", input=TEXT, response_format=response_format
    )
    assert speech.response.headers["content-type"] == media_type
    with av.open(io.BytesIO(speech.content)) as file:
        [stream] = file.streams
        assert stream.codec_context.name.startswith(codec)
        seconds = sum(frame.samples / frame.sample_rate for frame in file.decode(stream))
    assert seconds == pytest.approx(expected_samples(folder, TEXT).size / tiny_voice.SAMPLE_RATE, abs=0.2)


def test_mp3_is_the_default_and_pcm_has_24_khz(client: OpenAI, folder: Path) -> None:
    speech = client.audio.speech.create(model="tiny", voice="tiny", input="one")
    assert speech.response.headers["content-type"] == "audio/mpeg"
    pcm = client.audio.speech.create(model="tiny", voice="tiny", input=TEXT, response_format="pcm")
    seconds = expected_samples(folder, TEXT).size / tiny_voice.SAMPLE_RATE
    assert len(pcm.content) / 2 / 24_000 == pytest.approx(seconds, abs=0.01)


def test_the_voice_may_be_left_out_or_an_object(url: str) -> None:
    contents = [
        speak(url, **fields).content
        for fields in ({}, {"voice": "tiny"}, {"voice": {"id": "tiny"}}, {"user": "u"}, {"speed": 1})
    ]
    assert contents[0][:4] == b"RIFF"
    assert contents == [contents[0]] * 5


def test_sound_is_sent_while_the_text_is_being_spoken(folder: Path) -> None:
    voice = GatedVoice(folder)
    with serve(SpeechEngine(voice, Settings())) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options: Any = {"model": "tiny", "voice": "tiny", "input": TEXT, "response_format": "pcm"}
        with client.audio.speech.with_streaming_response.create(**options) as response:
            pieces = response.iter_bytes()
            first = next(pieces)
            assert first
            assert len(voice.spoken) == 1
            voice.gate.set()
            rest = b"".join(pieces)
        assert len(voice.spoken) == 3
        assert first + rest == client.audio.speech.create(**options).content


def test_events_carry_the_file(url: str) -> None:
    response = speak(url, input=TEXT, stream_format="sse")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 3 + ["speech.audio.done"]
    file = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert file == speak(url, input=TEXT).content
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] > 20


@pytest.mark.parametrize(
    ("fields", "status", "param", "problem"),
    [
        ({"model": "joe"}, 404, "model", "no model 'joe'; use one of: tiny"),
        ({"input": ""}, 400, "input", "at least 1 character"),
        ({"input": " \n"}, 400, "input", "the text has no character that can be spoken; send words"),
        ({"input": "... 👍 !"}, 400, "input", "no character that can be spoken"),
        ({"input": "a" * 4097}, 400, "input", "at most 4096 characters"),
        ({"input": 7}, 400, "input", "valid string"),
        ({"voice": "alloy"}, 400, "voice", "no voice 'alloy'; use one of: tiny"),
        ({"voice": {"id": "nova"}}, 400, "voice", "no voice 'nova'; use one of: tiny"),
        ({"response_format": "ogg"}, 400, "response_format", "'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'; got 'ogg'"),
        ({"speed": 0.2}, 400, "speed", "greater than or equal to 0.25; got 0.2"),
        ({"speed": 4.1}, 400, "speed", "less than or equal to 4; got 4.1"),
        ({"instructions": "whisper"}, 400, "instructions", "one manner of speaking; leave them out"),
        ({"stream_format": "chunks"}, 400, "stream_format", "'audio' or 'sse'"),
        ({"format": "wav"}, 400, "format", "unknown parameter 'format'"),
    ],
)  # fmt: skip
def test_errors_are_in_the_form_of_openai(
    url: str, fields: dict[str, Any], status: int, param: str, problem: str
) -> None:
    response = speak(url, **fields)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert problem in error["message"]
    assert (error["param"] or "").split(".")[0] == param
    assert error["type"]


def test_openai_errors_are_exceptions_of_its_client(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no voice 'alloy'"):
        client.audio.speech.create(model="tiny", voice="alloy", input="a")


def test_pages_and_the_openapi_document(client: OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/audio/speech",
        "/v1/models",
        "/v1/models/{model}",
        "/v2/health/live",
        "/v2/health/ready",
    }
    operation = document["paths"]["/v1/audio/speech"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"] == {"enum": ["tiny"]}
    assert body["properties"]["input"]["maxLength"] == 4096
    assert body["required"] == ["model", "input"]
    assert set(operation["responses"]["200"]["content"]) == {
        *("audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm", "text/event-stream")
    }
    assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": True}
    assert httpx.get(f"{url}/docs").status_code == 200
    response = httpx.post(f"{url}/predict", json={"inputs": {}})
    assert response.status_code == 404
    assert "this endpoint speaks: it has POST /v1/audio/speech" in response.json()["detail"]
    with pytest.raises(SpecError, match="a voice, which makes no predictions; call its /v1/audio/speech"):
        load_model(url).predict({"text": "a"})


def test_speakers_are_voices(tmp_path: Path) -> None:
    folder = tiny_voice.make_voice(tmp_path, num_speakers=2, speaker_id_map={"ann": 0, "ben": 1})
    with serve(SpeechEngine(Voice(folder), Settings())) as url:
        ann, ben, default = (
            soundfile.read(io.BytesIO(speak(url, **fields).content))[0]
            for fields in ({"voice": "ann"}, {"voice": "ben"}, {})
        )
        assert np.allclose(ben, ann / 2, atol=1e-4)
        assert np.array_equal(default, ann)
        message = speak(url, voice="tiny").json()["error"]["message"]
        assert message == "no voice 'tiny'; use one of: ann, ben"


def test_api_keys(folder: Path) -> None:
    key = "0123456789abcdef"
    with serve(SpeechEngine(Voice(folder), Settings(keys=(hash_api_key(key),), model="joe"))) as url:
        assert speak(url, model="joe").status_code == 401
        client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        assert client.audio.speech.create(model="joe", voice="joe", input="a").content
        paths = httpx.get(f"{url}/openapi.json").json()["paths"]
        assert paths["/v1/audio/speech"]["post"]["security"] == [{"key": []}]


def test_limits_of_bodies_requests_and_time(folder: Path) -> None:
    voice = GatedVoice(folder)
    voice.spoken.append("so that the first sentence waits, too")
    settings = Settings(max_batch_size=1, max_queued_requests=1, request_timeout=1.0, max_body_size=1000)
    engine = SpeechEngine(voice, settings)
    with serve(engine) as url, ExitStack() as stack:
        assert speak(url, input="a" * 2000).status_code == 413
        answers: list[httpx.Response] = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: answers.append(speak(url)))
            thread.start()
            stack.callback(thread.join)
        wait_for(lambda: engine.active_requests == 2)
        refused = speak(url)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "1 requests are queued already" in refused.json()["error"]["message"]
        wait_for(lambda: len(answers) == 2)
        assert [answer.status_code for answer in answers] == [504, 504]
        assert "within 1 s (limits.request_timeout)" in answers[0].json()["error"]["message"]
        voice.gate.set()
        wait_for(lambda: engine.active_requests == 0)
        assert speak(url).status_code == 200


def test_a_stream_that_takes_too_long_is_cut_off(folder: Path) -> None:
    voice, other = GatedVoice(folder), GatedVoice(folder)
    with serve(SpeechEngine(voice, Settings(request_timeout=1.0))) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            speak(url, input=TEXT)
        voice.gate.set()
    with serve(SpeechEngine(other, Settings(request_timeout=1.0))) as url:
        response = speak(url, input=TEXT, stream_format="sse")
        first, last = (
            json.loads(line.removeprefix("data: ")) for line in response.text.strip().split("\n\n")
        )
        assert first["type"] == "speech.audio.delta"
        assert last["error"]["code"] == "timeout"
        other.gate.set()


def test_a_dropped_request_ends_with_its_sentence(folder: Path) -> None:
    voice, metrics = GatedVoice(folder), Recorded()
    engine = SpeechEngine(voice, Settings(), metrics=metrics)
    text = "One. Two. Three. Four. Five."
    with serve(engine) as url:
        body = {"model": "tiny", "input": text, "response_format": "pcm"}
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
            next(response.iter_raw())
        wait_for(lambda: engine.active_requests == 0)
        voice.gate.set()
        assert speak(url).status_code == 200  # behind the sentence that was being spoken
    assert voice.spoken[:1] == ["One."]
    assert voice.spoken[-1] == "one two"
    assert voice.spoken[1:-1] in ([], ["Two."])  # the sentence that had begun, if any
    assert [stats.reason for stats in metrics.speeches] == ["cancelled", "stop"]


def test_metrics(client: OpenAI, metrics: Recorded, folder: Path) -> None:
    metrics.speeches.clear()
    client.audio.speech.create(model="tiny", voice="tiny", input=TEXT)
    wait_for(lambda: len(metrics.speeches) == 1)
    [stats] = metrics.speeches
    assert (stats.reason, stats.characters) == ("stop", len(TEXT))
    assert stats.audio_seconds == pytest.approx(expected_samples(folder, TEXT).size / tiny_voice.SAMPLE_RATE)
    assert stats.first_audio_seconds is not None
    assert 0 < stats.first_audio_seconds <= stats.seconds


def test_a_voice_that_fails_makes_the_replica_unhealthy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Voice(folder)
    engine = SpeechEngine(voice, Settings())
    original = voice.synthesize

    def fail(*_: Any, **__: Any) -> Samples:
        raise DataError("the weights are invalid")

    with serve(engine) as url:
        monkeypatch.setattr(voice, "synthesize", fail)
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            response = speak(url)
            assert response.status_code == 500
            assert "weights" not in response.text
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        with pytest.raises(DataError):
            voice.check()
        monkeypatch.setattr(voice, "synthesize", original)
        assert speak(url).status_code == 200
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        voice.check()


def test_short_texts_do_not_wait_for_long_ones(folder: Path) -> None:
    """Requests take turns by sentence in the only thread."""
    spoken: list[str] = []

    class Listed(Voice):
        def phonemes(self, sentence: str) -> list[str]:
            spoken.append(sentence)
            return super().phonemes(sentence)

    async def read(engine: SpeechEngine, text: str) -> None:
        from rayfuse.serving.speech_engine import SpeechParams

        async for _ in engine.open(SpeechParams(text, "pcm")).pieces:
            pass

    async def both() -> None:
        engine = SpeechEngine(Listed(folder), Settings())
        await asyncio.gather(read(engine, "Long. " * 20), read(engine, "Short."))
        engine.close()

    asyncio.run(both())
    assert spoken.index("Short.") < 4
