"""A voice of Piper, whose speech Whisper transcribes. Skipped without the folders of both models.

RAYFUSE_MODELS names the folder that has `piper-joe` and `whisper-base`; by default `../models`.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
from endpoints import serve_app_in_thread
from openai import OpenAI
from scipy.signal import resample_poly
from starlette.applications import Starlette
from starlette.routing import Mount
from whisper_normalizer.english import EnglishTextNormalizer

from rayfuse.serving.settings import Settings
from rayfuse.serving.speech_app import build_speech_app
from rayfuse.serving.speech_engine import SpeechEngine
from rayfuse.speech.voice import Voice
from rayfuse.speech.voice_folder import find_piper_voice, save_voice

SENTENCES = [
    "The next train to Cambridge leaves at ten past four from platform two.",
    "I still have not received my new card, and I ordered it over a week ago.",
    "Dr. Smith bought 1,234 tickets in 2019, which was 3% more than in 2018.",
    "She will read the same book that he read yesterday.",
    "Can you find me a round trip flight on the 14th of this month? I would like to fly in the morning.",
]
WHISPER_RATE = 16000
MAX_WORD_ERROR_RATE = 0.1


@pytest.fixture(scope="module")
def models(root: Path) -> Path:
    folder = Path(os.environ.get("RAYFUSE_MODELS", root.parent / "models"))
    for name in ("piper-joe", "whisper-base"):
        if not (folder / name).is_dir():
            pytest.skip(f"{folder / name} does not exist")
    return folder


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("voice") / "model"
    save_voice(find_piper_voice(models / "piper-joe"), folder, "joe", "CC0", None)
    engine = SpeechEngine(Voice(folder), Settings(request_timeout=240.0))
    with serve_app_in_thread(Starlette(routes=[Mount("/joe", app=build_speech_app(engine))])) as url:
        yield OpenAI(base_url=f"{url}/joe/v1", api_key="none", max_retries=0)
    engine.close()


@pytest.fixture(scope="module")
def whisper(models: Path) -> Any:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(models / "whisper-base")
    model = WhisperForConditionalGeneration.from_pretrained(models / "whisper-base", dtype=torch.float32)

    def transcribe(samples: np.ndarray) -> str:
        features = processor(samples, sampling_rate=WHISPER_RATE, return_tensors="pt").input_features
        tokens = model.generate(features, language="en", task="transcribe")
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    return transcribe


def test_whisper_transcribes_what_was_to_be_spoken(client: OpenAI, whisper: Any) -> None:
    normalize = EnglishTextNormalizer()
    transcripts = []
    for sentence in SENTENCES:
        speech = client.audio.speech.create(model="joe", voice="joe", input=sentence, response_format="wav")
        samples, rate = soundfile.read(io.BytesIO(speech.content), dtype="float32")
        assert 5 < len(sentence) / (samples.size / rate) < 30, "characters per second"
        transcripts.append(whisper(resample_poly(samples, WHISPER_RATE, rate)))
    error_rate = jiwer.wer([normalize(text) for text in SENTENCES], [normalize(text) for text in transcripts])
    assert error_rate <= MAX_WORD_ERROR_RATE, (error_rate, transcripts)
