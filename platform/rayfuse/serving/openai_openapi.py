"""The OpenAI routes in the OpenAPI document of an endpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rayfuse.modalities.base import Schema, object_schema
from rayfuse.serving.openai_requests import ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest
from rayfuse.serving.openai_speech import SpeechRequest
from rayfuse.serving.openai_transcriptions import TranscriptionRequest
from rayfuse.serving.streaming import EVENTS
from rayfuse.speech.audio_encoding import FORMATS

_JSON = "application/json"
_POSTS: dict[str, tuple[str, str, type[BaseModel]]] = {
    "/v1/chat/completions": ("chat_completion", "Reply to a dialogue", ChatRequest),
    "/v1/completions": ("completion", "Continue a text", CompletionRequest),
    "/v1/responses": ("response", "Reply to a text or a dialogue", ResponsesRequest),
}
_STATUSES = {
    "400": "The request is invalid; `param` names the parameter",
    "401": "API key required",
    "404": "No such model",
    "413": "The body is too large",
    "422": "A required input is missing, or an input is invalid",
    "429": "Too many requests",
    "504": "The reply did not end in time",
}


def openai_paths(
    models: Sequence[str],
    embedders: Sequence[str],
    inputs: Schema,
    voices: Mapping[str, Sequence[str]] | None = None,
) -> Schema:
    """Return the paths below /v1.

    models, embedders: names by which requests call what writes and what embeds texts; inputs: schema of the inputs;
    voices: speakers by the name of the model that speaks.
    """
    voices = voices or {}
    posts: Schema = {}
    if models:
        writers = {"enum": list(models)}
        posts |= {path: {"post": _post(*one, writers, inputs)} for path, one in _POSTS.items()}
        posts["/v1/audio/transcriptions"] = {"post": _transcription(writers)}
    if embedders:
        posts["/v1/embeddings"] = {"post": _embeddings({"enum": list(embedders)})}
    if voices:
        posts["/v1/audio/speech"] = {"post": _speech(voices)}
    names = {"enum": [*models, *embedders, *voices]}
    model = object_schema({"id": names, "object": {"const": "model"}, "created": {"type": "integer"}})
    listed = object_schema({"object": {"const": "list"}, "data": {"type": "array", "items": model}})
    by_name = _get("retrieve_model", "Describe a model", model)
    by_name["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": names}]
    return {
        **posts,
        "/v1/models": {"get": _get("list_models", "List the models", listed)},
        "/v1/models/{model}": {"get": by_name},
    }


def _embeddings(names: Schema) -> Schema:
    vector = {"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
    one = {"object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": vector}
    tokens = object_schema({name: {"type": "integer"} for name in ("prompt_tokens", "total_tokens")})
    content = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": object_schema(one)},
        "model": {"type": "string"},
        "usage": tokens,
    }
    operation = _get("embeddings", "Embed texts", object_schema(content))
    body = EmbeddingRequest.model_json_schema()
    body["properties"] |= {"model": names}
    operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def _speech(voices: Mapping[str, Sequence[str]]) -> Schema:
    operation = _get("speech", "Speak a text", {})
    sound = {"schema": {"type": "string", "format": "binary"}}
    content = {one.media_type: sound for one in FORMATS.values()} | {EVENTS: {"schema": {"type": "string"}}}
    operation["responses"]["200"]["content"] = content
    body = SpeechRequest.model_json_schema()
    body.pop("$defs", None)
    speakers = list(dict.fromkeys(speaker for own in voices.values() for speaker in own))
    body["properties"] |= {
        "model": {"enum": list(voices)},
        "voice": {"anyOf": [{"enum": speakers}, object_schema({"id": {"enum": speakers}})]},
    }
    operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def openai_schemas() -> Schema:
    """Return the component schemas that the paths refer to."""
    error = {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }
    return {"OpenAIError": object_schema({"error": object_schema(error)})}


def _post(name: str, summary: str, body: type[BaseModel], models: Schema, inputs: Schema) -> Schema:
    operation = _get(name, summary, {"type": "object"})
    operation["requestBody"] = {
        "required": True,
        "content": {_JSON: {"schema": _body_schema(body, models, inputs)}},
    }
    content: dict[str, Any] = operation["responses"]["200"]["content"]
    content[EVENTS] = {"schema": {"type": "string"}}
    return operation


def _transcription(models: Schema) -> Schema:
    operation = _get("transcription", "Transcribe a sound", object_schema({"text": {"type": "string"}}))
    schema = TranscriptionRequest.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "The encoded sound, such as WAV or MP3"}
    schema["properties"] = {"file": file, **schema["properties"], "model": models}
    schema["required"] = ["file", *schema["required"]]
    operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    content: dict[str, Any] = operation["responses"]["200"]["content"]
    content["text/plain"] = content[EVENTS] = {"schema": {"type": "string"}}
    return operation


def _body_schema(body: type[BaseModel], models: Schema, inputs: Schema) -> Schema:
    """Return the JSON Schema of a body, with its definitions inside, and the names and inputs of the served model."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    schema = _inline(schema, definitions)
    schema["properties"] |= {"model": models, "inputs": inputs}
    return schema


def _inline(node: Any, definitions: Schema) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            node = {**definitions[str(node["$ref"]).rpartition("/")[2]], **node}
            del node["$ref"]
        return {key: _inline(value, definitions) for key, value in node.items()}
    return [_inline(value, definitions) for value in node] if isinstance(node, list) else node


def _get(name: str, summary: str, response: Schema) -> Schema:
    error = {_JSON: {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    ok = {"description": summary, "content": {_JSON: {"schema": response}}}
    return {
        "operationId": name,
        "tags": ["OpenAI"],
        "summary": summary,
        "responses": {
            "200": ok,
            **{status: {"description": text, "content": error} for status, text in _STATUSES.items()},
        },
    }
