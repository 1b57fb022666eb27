"""The ASGI application of an endpoint that speaks. Runs without Ray."""

import time
from collections.abc import Mapping

from starlette.applications import Starlette

from rayfuse import __version__
from rayfuse.modalities.base import Schema
from rayfuse.serving.app import Pages, assemble
from rayfuse.serving.client import MODEL_EXTENSION, VOICE_KIND
from rayfuse.serving.openai_openapi import openai_paths, openai_schemas
from rayfuse.serving.openai_routes import OpenAIRoutes
from rayfuse.serving.openai_speech import SpeechModel
from rayfuse.serving.openapi import add_api_key, health_paths
from rayfuse.serving.speech_engine import SpeechEngine, SpeechParams, SpeechStream

_NOT_FOUND_DETAIL = (
    "this endpoint speaks: it has POST /v1/audio/speech and GET /v1/models, /docs, /openapi.json, /v2/health/live, "
    "/v2/health/ready"
)


def build_speech_app(engine: SpeechEngine) -> Starlette:
    """Build the ASGI application of an engine; its routes are relative to the path that it is mounted at."""
    pages, model = _SpeechPages(engine), _ServedVoice(engine)

    def voices() -> Mapping[str, SpeechModel]:
        return {str(engine.model["name"]): model}

    routes = OpenAIRoutes(dict, lambda: engine.settings, voices=voices, authorize=pages.authorize)
    return assemble(pages, routes.routes(), _NOT_FOUND_DETAIL)


class _ServedVoice:
    """The voice of an engine, under the name of its model."""

    def __init__(self, engine: SpeechEngine) -> None:
        self._engine = engine
        self.created = int(time.time())

    def open(self, params: SpeechParams) -> SpeechStream:
        return self._engine.open(params)


class _SpeechPages(Pages):
    """The pages of an endpoint that speaks."""

    engine: SpeechEngine

    def build_document(self, root: str) -> Schema:
        engine, description = self.engine, self.engine.voice.description
        model = engine.model
        name = str(model["name"])
        described = f"{name} {model['version']}" if model.get("version") else name
        document: Schema = {
            "openapi": "3.1.0",
            "info": {
                "title": name,
                "version": str(model.get("version") or __version__),
                "description": f"A voice. Language: {description.language}. License: {description.license}.",
            },
            "servers": [{"url": root or "/", "description": f"model {described}"}],
            "paths": {**openai_paths([], [], {}, {name: engine.speakers}), **health_paths()},
            "components": {"schemas": openai_schemas()},
            MODEL_EXTENSION: {**model, "kind": VOICE_KIND, "inputs": {}, "tasks": {}},
        }
        return add_api_key(document) if engine.settings.keys else document
