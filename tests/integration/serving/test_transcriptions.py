"""Transcripts under the OpenAI protocol, with its client."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest
import soundfile
import tiny_generation
import tiny_jobs
import tiny_language_models
from endpoints import b64, serve_app_in_thread
from openai import OpenAI
from starlette.testclient import TestClient

from rayfuse.decoding.request import SamplingParams
from rayfuse.model.predictor import Predictor
from rayfuse.serving.app import build_app
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_generator import ChatMessage, FilePart, GenerationRequest
from rayfuse.serving.openai_prompts import TaskPrompts
from rayfuse.serving.openai_transcriber import SoundReader, Transcriber, Window
from rayfuse.serving.settings import Settings


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("speech")
    tiny_generation.make_speech_rows(folder)
    tiny_language_models.randomize(tiny_language_models.whisper(folder / "whisper"), std=0.6, seed=18)
    job = tiny_generation.speech_job(folder)
    return Predictor(tiny_jobs.make_model_folder(folder, 0, job=job))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sounds")
    return [tiny_jobs.write_audio(folder / f"{pitch}.wav", pitch).read_bytes() for pitch in tiny_jobs.PITCHES]


@pytest.fixture(scope="module")
def engine(predictor: Predictor) -> Iterator[InferenceEngine]:
    engine = InferenceEngine(predictor, Settings(model="tiny", version=3, batch_wait_timeout=0.0))
    yield engine
    engine.texts.close()


@pytest.fixture(scope="module")
def client(engine: InferenceEngine) -> Iterator[OpenAI]:
    with (
        serve_app_in_thread(build_app(engine)) as address,
        OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as opened,
    ):
        yield opened


def test_transcripts_are_those_of_the_model(
    client: OpenAI, predictor: Predictor, sounds: list[bytes]
) -> None:
    texts = [one["outputs"]["answer"]["text"] for one in predictor.predict([{"audio": s} for s in sounds])]
    assert len(set(texts)) == 2
    for sound, text in zip(sounds, texts, strict=True):
        options: dict[str, Any] = {"model": "tiny", "file": ("clip.wav", sound)}
        found = client.audio.transcriptions.create(**options, language="en")
        assert found.text == text
        assert found.usage.output_tokens <= 12  # type: ignore[union-attr]
        plain = client.audio.transcriptions.create(**options, response_format="text")
        assert plain == text + "\n"
        events = list(client.audio.transcriptions.create(**options, stream=True))
        assert {event.type for event in events[:-1]} <= {"transcript.text.delta"}
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == text
        part = {"type": "input_audio", "input_audio": {"data": b64(sound)["b64"], "format": "wav"}}
        asked: Any = [{"role": "user", "content": [part]}]
        chat = client.chat.completions.create(model="tiny", messages=asked)
        assert (chat.choices[0].message.content or "").strip() == text


def test_time_stamps(client: OpenAI, sounds: list[bytes]) -> None:
    options: dict[str, Any] = {"model": "tiny", "file": ("clip.wav", sounds[0])}
    found: Any = client.audio.transcriptions.create(**options, response_format="verbose_json")
    times = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert found.text == " ".join(segment.text for segment in found.segments)
    srt: Any = client.audio.transcriptions.create(**options, response_format="srt")
    vtt: Any = client.audio.transcriptions.create(**options, response_format="vtt")
    assert vtt.startswith("WEBVTT\n")
    for number, segment in enumerate(found.segments, 1):
        start, end = (f"00:00:{time:06.3f}" for time in (segment.start, segment.end))
        assert f"\n{start} --> {end}\n{segment.text}\n" in vtt
        assert f"{number}\n{start} --> {end}\n{segment.text}\n".replace(".", ",", 2) in srt


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"language": "de"}, "language", "this model transcribes en and not de"),
        ({"response_format": "srt", "stream": True}, "stream", "a transcript with time stamps is sent whole"),
        ({"response_format": "xml"}, "response_format", "Input should be"),
        ({"temperature": 7}, "temperature", "less than or equal to 2"),
        ({"prompt": "Hello"}, "prompt", "prompt is not supported"),
        ({"model": "other"}, "model", "no model 'other'; use one of: tiny"),
        ({"file": ("clip.wav", b"RIFF" * 20)}, "audio", "the audio file is truncated"),
    ],
)
def test_wrong_requests(
    client: OpenAI, sounds: list[bytes], change: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        client.audio.transcriptions.create(**{"model": "tiny", "file": ("a.wav", sounds[0]), **change})
    assert raised.value.body["param"] == param  # type: ignore[index]


def test_a_text_has_no_transcript(client: OpenAI, sounds: list[bytes]) -> None:
    part = {"type": "input_audio", "input_audio": {"data": b64(sounds[0])["b64"], "format": "wav"}}
    asked: Any = [{"role": "user", "content": [part, {"type": "text", "text": "What is that?"}]}]
    with pytest.raises(openai.BadRequestError, match="reads no text; send the sound alone"):
        client.chat.completions.create(model="tiny", messages=asked)
    with pytest.raises(openai.BadRequestError, match="this model transcribes sounds"):
        client.completions.create(model="tiny", prompt="hello")


def test_predictions_of_absent_and_present_clips(
    predictor: Predictor, sounds: list[bytes], tmp_path: Path
) -> None:
    engine = InferenceEngine(predictor, Settings(model="tiny", version=3, batch_wait_timeout=0.0))
    with TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000)) as client:
        png = tiny_jobs.write_image(tmp_path / "a.png").read_bytes()
        absent = client.post("/predict", json={"inputs": {"image": b64(png)}}).json()
        assert absent["outputs"]["answer"] == {"text": ""}
        assert absent["inputs_used"] == ["image"]
        present = client.post("/predict", json={"inputs": {"image": b64(png), "audio": b64(sounds[0])}})
        assert present.json()["outputs"]["answer"]["text"]
        document = client.get("/openapi.json").json()
        body = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
        assert {"file", "model", "language"} <= body["multipart/form-data"]["schema"]["properties"].keys()
    engine.texts.close()


@pytest.fixture(scope="module")
def long_sound() -> bytes:
    """Return a WAV file of 5.3 s, several times as long as the model reads."""
    steps = np.arange(int(5.3 * 8000))
    file = io.BytesIO()
    soundfile.write(file, np.sin(steps * (1 + np.sin(steps / 5000)) / 9) * 0.4, 8000, format="WAV")
    return file.getvalue()


def test_a_long_sound_is_transcribed_window_by_window(
    client: OpenAI, long_sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Window] = []
    read = SoundReader.read

    async def record(self: SoundReader, content: bytes, start: float) -> Window:
        seen.append(await read(self, content, start))
        return seen[-1]

    monkeypatch.setattr(SoundReader, "read", record)
    options: dict[str, Any] = {"model": "tiny", "file": ("long.wav", long_sound)}
    found: Any = client.audio.transcriptions.create(**options, response_format="verbose_json")
    text = client.audio.transcriptions.create(**options).text
    events: list[Any] = list(client.audio.transcriptions.create(**options, stream=True))
    assert found.text.strip() == text == events[-1].text
    assert "".join(event.delta for event in events[:-1]).strip() == text
    windows = seen[: len(seen) // 3]  # each of the three requests read the same ones
    assert windows[0].start == 0
    assert 13 < len(windows) < 60
    ends = [one.start for one in windows[1:]] + [5.3]
    segments = [(one.start, one.end, one.text) for one in found.segments]
    assert segments == sorted(segments)
    for window, end in zip(windows, ends, strict=True):
        assert window.start < end <= window.start + 0.4 + 1e-6
        alone: Any = client.audio.transcriptions.create(
            model="tiny", file=("part.wav", window.to_wav()), response_format="verbose_json"
        )
        for one in alone.segments[: None if end > window.start + 0.39 else -1]:
            start, stop = (round(time + window.start, 2) for time in (one.start, one.end))
            assert (start, stop, one.text) in segments


def test_the_parts_of_a_sound_are_those_of_the_whole(engine: InferenceEngine, long_sound: bytes) -> None:
    """Also where FFmpeg decodes it, and not libsndfile."""
    mp4 = io.BytesIO()
    with av.open(mp4, "w", format="mp4") as container, av.open(io.BytesIO(long_sound)) as source:
        stream = container.add_stream("aac", rate=16000)
        for frame in source.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for content in (long_sound, mp4.getvalue()):

        def read(start: float, seconds: float, content: bytes = content) -> np.ndarray:
            return asyncio.run(engine.decode_sound("audio", content, start, seconds))

        whole = read(0, 10)
        assert len(whole) >= 5.3 * 16000
        part = read(1.5, 0.5)
        assert len(part) == 8000
        difference = np.abs(part - whole[24000:32000])
        assert difference[200:-200].max() < 1e-4  # resampling of a part knows nothing around it
        assert len(read(6.0, 1)) == 0


def test_a_cancelled_transcript_starts_no_other_window(predictor: Predictor, long_sound: bytes) -> None:
    """Whether the client goes before a window is transcribed, or after it (llama.cpp#24496)."""
    starts: list[float] = []

    class Reader(SoundReader):
        async def read(self, content: bytes, start: float) -> Window:
            starts.append(start)
            return await super().read(content, start)

    async def run() -> None:
        engine = InferenceEngine(predictor, Settings(model="tiny", version=3, batch_wait_timeout=0.0))
        task = engine.texts.tasks["answer"]
        assert task.decoding.time_stamps is not None
        transcriber = Transcriber(
            Reader(engine, "audio"),
            task.decoding.time_stamps.split,
            task.thread,
            TaskPrompts(engine, "answer"),
            task.decoding.tokenizer,
        )
        message = ChatMessage("user", (FilePart("audio", long_sound),))
        request = GenerationRequest(SamplingParams(12, temperature=0.0), (message,))
        for is_early in (True, False):
            starts.clear()
            reply = await transcriber.open(request)
            if is_early:
                reply.cancel()
            async for piece in reply:
                reply.cancel()
                last = piece
            assert last.finish_reason is not None
            assert starts == [0.0]
        await engine.close()

    asyncio.run(run())
