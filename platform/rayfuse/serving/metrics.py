"""Metrics of a replica, which Ray exports for Prometheus with the tags of Ray Serve."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfuse.decoding.stream import ReplyStats
    from rayfuse.serving.engine import Timing

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
_RATES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


@dataclass(frozen=True)
class SpeechStats:
    """A text that was spoken, whole or in part."""

    reason: str
    """Why it has ended: `stop`, `cancelled` or `error`."""
    characters: int
    """Length of the text."""
    audio_seconds: float
    """Length of the sound."""
    seconds: float
    """Time from the request to the end."""
    first_audio_seconds: float | None
    """Time from the request to the first piece of the sound; None if there was none."""


class EndpointMetrics:
    """Interface of the metrics of a replica; this class records nothing, as outside of Ray Serve."""

    def record_prediction(self, timing: "Timing") -> None:
        """Record the seconds that a request to `/predict` spent in each stage, and the size of its batch."""

    def record_reply(self, task: str, stats: "ReplyStats") -> None:
        """Record a text of a generation task that has ended."""

    def record_speech(self, stats: SpeechStats) -> None:
        """Record a text that was spoken."""


class ServeMetrics(EndpointMetrics):
    """Metrics of Ray Serve, to be built in a replica."""

    def __init__(self) -> None:
        from ray.serve import metrics

        by_task: Any = ("task",)
        by_reason: Any = ("task", "finish_reason")

        def seconds(name: str, description: str, tags: Any = ()) -> "metrics.Histogram":
            return metrics.Histogram(
                f"rayfuse_{name}_seconds", description=description, boundaries=_SECONDS, tag_keys=tags
            )

        def tokens(name: str, description: str) -> "metrics.Counter":
            return metrics.Counter(f"rayfuse_{name}_tokens", description=description, tag_keys=by_task)

        self._stages = {
            "preprocess_seconds": seconds("preprocess", "Decoding and preprocessing of a request."),
            "queue_seconds": seconds("queue", "Waiting of a request for a batch."),
            "compute_seconds": seconds("compute", "Forward passes of the model for a request."),
        }
        self._batch_size = metrics.Histogram(
            "rayfuse_batch_size", description="Instances of a batch.", boundaries=_SIZES
        )
        self._replies = metrics.Counter(
            "rayfuse_replies",
            description="Texts that have ended, by the reason: stop, length, cancelled or error.",
            tag_keys=by_reason,
        )
        self._prompt_tokens = tokens("prompt", "Positions of prompts, soft tokens included.")
        self._reused_tokens = tokens("reused_prompt", "Those of them that an earlier request had computed.")
        self._reply_tokens = tokens("generation", "Tokens of texts.")
        self._first_token = seconds(
            "time_to_first_token", "From a request to the first part of its text.", by_task
        )
        self._per_token = seconds(
            "time_per_output_token", "From the first part of a text to its end, per token.", by_task
        )

        self._speech = _SpeechMetrics()

    def record_speech(self, stats: SpeechStats) -> None:
        self._speech.record(stats)

    def record_prediction(self, timing: "Timing") -> None:
        for name, histogram in self._stages.items():
            histogram.observe(getattr(timing, name))
        self._batch_size.observe(timing.batch_size)

    def record_reply(self, task: str, stats: "ReplyStats") -> None:
        tags = {"task": task}
        self._replies.inc(tags={**tags, "finish_reason": stats.finish_reason})
        counts = (
            (self._prompt_tokens, stats.prompt_tokens),
            (self._reused_tokens, stats.reused_tokens),
            (self._reply_tokens, stats.reply_tokens),
        )
        for counter, count in counts:
            if count:
                counter.inc(count, tags=tags)
        if stats.first_token_seconds is not None:
            self._first_token.observe(stats.first_token_seconds, tags=tags)
            if stats.reply_tokens > 1:
                rest = stats.seconds - stats.first_token_seconds
                self._per_token.observe(rest / (stats.reply_tokens - 1), tags=tags)


class _SpeechMetrics:
    """Metrics of texts that are spoken."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self._texts = metrics.Counter(
            "rayfuse_speeches",
            description="Texts that were spoken, by the reason of their end: stop, cancelled or error.",
            tag_keys=("finish_reason",),
        )
        self._characters = metrics.Counter("rayfuse_speech_characters", description="Characters of texts.")
        self._audio = metrics.Counter("rayfuse_speech_audio_seconds", description="Length of the sound.")
        self._first_audio = metrics.Histogram(
            "rayfuse_time_to_first_audio_seconds",
            description="From a request to the first part of its sound.",
            boundaries=_SECONDS,
        )
        self._rate = metrics.Histogram(
            "rayfuse_speech_real_time_factor",
            description="Time of a text, waiting included, per second of its sound.",
            boundaries=_RATES,
        )

    def record(self, stats: SpeechStats) -> None:
        """Record a text."""
        self._texts.inc(tags={"finish_reason": stats.reason})
        if stats.first_audio_seconds is not None:
            self._characters.inc(stats.characters)
            self._audio.inc(stats.audio_seconds)
            self._first_audio.observe(stats.first_audio_seconds)
        if stats.reason == "stop":
            self._rate.observe(stats.seconds / stats.audio_seconds)
