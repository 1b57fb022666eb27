"""The OpenAI routes of an endpoint whose model has generation tasks."""

import time
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.routing import Route

from rayfuse.decoding.request import SamplingParams
from rayfuse.serving.engine import InferenceEngine
from rayfuse.serving.openai_decoder import DecoderGenerator
from rayfuse.serving.openai_generator import TextGenerator
from rayfuse.serving.openai_prompts import TaskPrompts
from rayfuse.serving.openai_routes import OpenAIRoutes


def openai_routes(engine: InferenceEngine, authorize: Callable[[Request], None]) -> list[Route]:
    """Return the routes below /v1; none for a model without texts that are decoded request by request."""
    if not engine.texts.tasks:
        return []
    created = int(time.time())
    by_task = {name: _generator(engine, name, created) for name in engine.texts.tasks}

    def generators() -> Mapping[str, TextGenerator]:
        return dict(zip(model_names(str(engine.model["name"]), list(by_task)), by_task.values(), strict=True))

    routes = OpenAIRoutes(
        generators, lambda: engine.settings, fetcher=engine.remote_fetcher, authorize=authorize
    )
    return routes.routes()


def model_names(model: str, tasks: list[str]) -> list[str]:
    """Return the names by which requests call the tasks of a model: its own, or MODEL/TASK if there are several tasks."""
    return [model] if len(tasks) == 1 else [f"{model}/{task}" for task in tasks]


def _generator(engine: InferenceEngine, name: str, created: int) -> DecoderGenerator:
    task = engine.texts.tasks[name]
    options = task.decoding.options
    return DecoderGenerator(
        task.thread,
        TaskPrompts(engine, name),
        task.decoding.tokenizer,
        defaults=SamplingParams(task.decoding.max_tokens, options.temperature, options.top_p),
        max_tokens=engine.texts.limits.max_tokens,
        created=created,
        segments=None if task.decoding.time_stamps is None else task.decoding.time_stamps.segments,
    )
