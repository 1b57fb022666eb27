"""The OpenAI routes of an endpoint whose model writes or embeds texts."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from rayfuse.decoding.request import SamplingParams
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_decoder import DecoderGenerator
from rayfuse.serving.openai_embeddings import SideTextEmbedder, TextEmbedder
from rayfuse.serving.openai_generator import TextGenerator
from rayfuse.serving.openai_prompts import TaskPrompts
from rayfuse.serving.openai_routes import OpenAIRoutes
from rayfuse.serving.openai_transcriber import SoundReader, Transcriber
from rayfuse.spec.inputs import TextInput
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import RetrievalTaskConfig


def openai_routes(engine: InferenceEngine, authorize: Callable[[Request], None]) -> list[Route]:
    """Return the routes below /v1; none for a model that neither decodes texts request by request nor embeds texts."""
    job, tasks = engine.predictor.job, list(engine.texts.tasks)
    sides = text_sides(job)
    if not tasks and not sides:
        return []
    created = int(time.time())
    by_task = [_generator(engine, name, created) for name in tasks]
    by_side = [SideTextEmbedder(engine, *side, created) for side in sides]

    def generators() -> Mapping[str, TextGenerator]:
        return dict(zip(model_names(str(engine.model["name"]), tasks), by_task, strict=True))

    def embedders() -> Mapping[str, TextEmbedder]:
        return dict(zip(embedder_names(str(engine.model["name"]), sides), by_side, strict=True))

    routes = OpenAIRoutes(
        generators,
        lambda: engine.settings,
        embedders=embedders,
        fetcher=engine.remote_fetcher,
        authorize=authorize,
    )
    return routes.routes()


def model_names(model: str, tasks: Sequence[str]) -> list[str]:
    """Return the names by which requests call the tasks of a model: its own, or MODEL/TASK if there are several tasks."""
    return [model] if len(tasks) == 1 else [f"{model}/{task}" for task in tasks]


def embedder_names(model: str, sides: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names by which requests call text inputs of retrieval tasks: MODEL/TASK/INPUT."""
    return [f"{model}/{task}/{name}" for task, name in sides]


def text_sides(job: Job) -> list[tuple[str, str]]:
    """Return the text inputs of the retrieval tasks of a job: pairs of task and input."""
    return [
        (task, name)
        for task, options in job.tasks.items()
        if isinstance(options, RetrievalTaskConfig)
        for name in options.inputs
        if isinstance(job.inputs[name], TextInput)
    ]


def _generator(engine: InferenceEngine, name: str, created: int) -> DecoderGenerator:
    task = engine.texts.tasks[name]
    decoding = task.decoding
    parts = task.thread, TaskPrompts(engine, name), decoding.tokenizer
    options: dict[str, Any] = {
        "defaults": SamplingParams(decoding.max_tokens, decoding.options.temperature, decoding.options.top_p),
        "max_tokens": engine.texts.limits.max_tokens,
        "created": created,
    }
    if decoding.time_stamps is None:
        return DecoderGenerator(*parts, **options)
    [sound] = decoding.prompt_inputs
    return Transcriber(SoundReader(engine, sound), decoding.time_stamps.split, *parts, **options)
