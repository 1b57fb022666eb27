"""Subtitles that an endpoint writes for videos of several spoken sentences: their words and their times."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from quality_rows import Row, read

Trained = dict[str, Any]

PAUSE_SECONDS = 0.6
"""Silence between two sentences of a video."""
_CUE = re.compile(r"\d+\n(\S+) --> (\S+)\n(.*)")


class Cue(NamedTuple):
    """A line of subtitles, with its times in seconds."""

    start: float
    end: float
    text: str


def write_video(path: Path, rows: list[Row]) -> list[Cue]:
    """Write a video of photos and their spoken captions, one after another; return when each caption is spoken."""
    import av
    import soundfile
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    cues: list[Cue] = []
    with av.open(str(path), "w") as container:
        images = container.add_stream("mpeg4", rate=1)
        images.width, images.height = 320, 240
        sound = container.add_stream("aac", rate=16000)
        parts: list[np.ndarray] = []
        for row in rows:
            samples, rate = soundfile.read(row["audio"], dtype="float32")
            start = sum(map(len, parts)) / rate
            cues.append(Cue(start, start + len(samples) / rate, row["text"]))
            parts += [samples, np.zeros(int(PAUSE_SECONDS * rate), np.float32)]
        whole = np.concatenate(parts)
        for second in range(int(len(whole) / rate)):
            place = max(number for number, cue in enumerate(cues) if cue.start <= second)
            with Image.open(rows[place]["image"]) as photo:
                frame = av.VideoFrame.from_image(photo.convert("RGB").resize((320, 240)))
            container.mux(images.encode(frame))
        audio = av.AudioFrame.from_ndarray(whole[None], format="fltp", layout="mono")
        audio.sample_rate = rate
        container.mux([*sound.encode(audio), *sound.encode(None), *images.encode(None)])
    return cues


def word_error_rate(trained: Trained) -> float:
    """Return the WER of the subtitles of all videos, after Whisper's normalization."""
    return _measure(trained["run"], trained["test"])[0]


def start_error(trained: Trained) -> float:
    """Return the mean distance in seconds from the beginning of a sentence to the nearest beginning of a subtitle."""
    return _measure(trained["run"], trained["test"])[1]


@cache
def _measure(run: str, test: str) -> tuple[float, float]:
    from starlette.testclient import TestClient

    from rayfuse.model.predictor import Predictor
    from rayfuse.model.tasks.replies import Replies, Reply, text_metrics
    from rayfuse.serving.app import build_app
    from rayfuse.serving.engine import InferenceEngine
    from rayfuse.serving.settings import Settings

    engine = InferenceEngine(
        Predictor(Path(run) / "model"), Settings(model="subtitles", request_timeout=3600)
    )
    app = TestClient(build_app(engine), "http://localhost", client=("127.0.0.1", 50000))
    replies, errors = Replies(), []
    with app as client:
        for row in read(Path(test).with_name("videos.jsonl")):
            response = client.post(
                "/v1/audio/transcriptions",
                files={"file": Path(row["video"]).read_bytes()},
                data={"model": "subtitles", "response_format": "srt"},
            )
            cues = [Cue(*cue) for cue in row["cues"]]
            found = parse_srt(response.raise_for_status().text)
            texts = [" ".join(cue.text for cue in part) for part in (found, cues)]
            replies.rows.append(Reply(*texts, None))
            errors += [min(abs(cue.start - one.start) for one in found) for cue in cues]
    return text_metrics(["wer"], replies, "whisper")["wer"], float(np.mean(errors))


def parse_srt(text: str) -> list[Cue]:
    """Return the cues of SubRip subtitles."""
    return [Cue(_seconds(start), _seconds(end), line) for start, end, line in _CUE.findall(text)]


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
