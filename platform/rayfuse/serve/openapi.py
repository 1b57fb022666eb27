"""The OpenAPI description of an endpoint, from the served model's own inputs and tasks."""

import base64
import io
import wave
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from rayfuse import __version__
from rayfuse.modalities import MODALITIES
from rayfuse.serve.problems import KINDS, MEDIA_TYPE
from rayfuse.serve.protocol import JSON, MAX_INSTANCES, MULTIPART
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Task

Schema = dict[str, Any]


def describe(job: Job, model: Mapping[str, Any], root: str, keyed: bool) -> Schema:
    """OpenAPI 3.1; `root` is the path below which the endpoint answers, `keyed` whether it wants an API key."""
    described = f"{model['name']} {model['version']}" if model.get("version") else str(model["name"])
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": job.name,
            "version": str(model.get("version") or __version__),
            "description": _about(job),
        },
        "servers": [{"url": root or "/", "description": f"model {described}"}],
        "paths": {"/predict": {"post": _predict(job)}, **_health()},
        "components": {"schemas": _schemas(job)},
    }
    if keyed:
        scheme = {"type": "http", "scheme": "bearer", "description": "one of the endpoint's API keys"}
        document["components"]["securitySchemes"] = {"key": scheme}
        document["paths"]["/predict"]["post"]["security"] = [{"key": []}]
    return document


def example(job: Job) -> dict[str, Any]:
    """A request body that the model answers."""
    return {"inputs": {name: _example_value(options) for name, options in job.inputs.items()}}


def _about(job: Job) -> str:
    optional = [name for name, options in job.inputs.items() if options.optional]
    text = f"Reads {', '.join(job.inputs)}; answers {', '.join(job.tasks)}."
    return f"{text} May be left out: {', '.join(optional)}." if optional else text


def _predict(job: Job) -> Schema:
    required = {name for name, options in job.inputs.items() if not options.optional}
    short = (
        {"inputs": {k: v for k, v in example(job)["inputs"].items() if k in required}} if required else None
    )
    examples = {"one": {"summary": "all inputs", "value": example(job)}}
    if short and short != example(job):
        examples["required"] = {"summary": "without what may be left out", "value": short}
    examples["several"] = {
        "summary": "several at once",
        "value": {"instances": [example(job), short or example(job)]},
    }
    return {
        "operationId": "predict",
        "tags": ["model"],
        "summary": "Ask the model",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"oneOf": [_ref("Request"), _ref("Requests")]}, "examples": examples},
                MULTIPART: {"schema": _form(job), "encoding": _encoding(job)},
            },
        },
        "responses": {
            "200": {
                "description": "The answer",
                "headers": {
                    "Server-Timing": {"description": "What it took, in ms", "schema": {"type": "string"}}
                },
                "content": {JSON: {"schema": {"oneOf": [_ref("Reply"), _ref("Replies")]}}},
            },
            **_problems(),
        },
    }


def _health() -> Schema:
    def get(name: str, summary: str) -> Schema:
        schema = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
        ok = {"description": summary, "content": {JSON: {"schema": schema}}}
        return {
            "get": {
                "operationId": f"health_{name}",
                "tags": ["health"],
                "summary": summary,
                "responses": {"200": ok},
            }
        }

    return {
        "/v2/health/live": get("live", "The server runs"),
        "/v2/health/ready": get("ready", "The model answers"),
    }


def _problems() -> Schema:
    found: dict[int, list[str]] = {}
    for kind, (status, title) in KINDS.items():
        found.setdefault(status, []).append(f"{title} (`{kind}`)")
    content = {MEDIA_TYPE: {"schema": _ref("Problem")}}
    return {
        str(status): {"description": "; ".join(titles), "content": content}
        for status, titles in found.items()
    }


def _schemas(job: Job) -> Schema:
    one = {"type": "object", "properties": {"inputs": _ref("Inputs")}, "required": ["inputs"]}
    outputs = {name: _answer(task) for name, task in job.tasks.items()}
    answer = {
        "outputs": {"type": "object", "properties": outputs, "required": list(outputs)},
        "inputs_used": {"type": "array", "items": {"enum": list(job.inputs)}},
    }
    model = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "version": {"type": ["integer", "string", "null"]}},
    }
    return {
        "File": _file(),
        "Inputs": _inputs(job),
        "Request": one,
        "Requests": _several("instances", _ref("Request"), maxItems=MAX_INSTANCES),
        "Reply": _object({**answer, "model": model}),
        "Replies": _several("predictions", _object(answer), model=model),
        "Problem": _object(
            {k: {"type": "string"} for k in ("type", "title", "detail")} | {"status": {"type": "integer"}}
        ),
    }


def _several(name: str, items: Schema, model: Schema | None = None, **limits: int) -> Schema:
    array = {"type": "array", "items": items, "minItems": 1, **limits}
    return _object({name: array, **({"model": model} if model else {})})


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _inputs(job: Job) -> Schema:
    properties = {}
    for name, options in job.inputs.items():
        base = _ref("File") if MODALITIES[options.type].from_file else {"type": "string"}
        properties[name] = {**base, "description": _say(options)}
    required = [name for name, options in job.inputs.items() if not options.optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _form(job: Job) -> Schema:
    properties = {}
    for name, options in job.inputs.items():
        kind: Schema = {"type": "string"}
        if MODALITIES[options.type].from_file:
            kind["format"] = "binary"
        else:
            kind["examples"] = [_example_value(options)]
        properties[name] = {**kind, "description": _say(options)}
    required = [name for name, options in job.inputs.items() if not options.optional]
    return {"type": "object", "properties": properties, "required": required}


def _encoding(job: Job) -> Schema:
    def types(options: Input) -> str:
        return ", ".join(f"{t}*" if t.endswith("/") else t for t in MODALITIES[options.type].media_types)

    return {name: {"contentType": types(options)} for name, options in job.inputs.items()}


def _file() -> Schema:
    b64 = {"type": "string", "contentEncoding": "base64", "description": "the file's bytes in base64"}
    url = {"type": "string", "format": "uri", "description": "a public http or https address of the file"}
    return {"oneOf": [_object({"b64": b64}), _object({"url": url})]}


def _say(options: Input) -> str:
    text = {
        "image": lambda o: f"a picture; resized to {o.size} × {o.size} pixels",
        "audio": lambda o: f"a sound file; the first {o.max_seconds:g} s are heard",
        "text": lambda o: f"a text; the first {o.max_tokens} tokens are read",
    }[options.type](options)
    return f"{text} (may be left out)" if options.optional else text


def _answer(task: Task) -> Schema:
    """What the task's head answers; one of a kind that is not known here may answer any object."""
    return _ANSWERS.get(task.type, lambda task: {"type": "object"})(task)


def _one_class(task: Any) -> Schema:
    return _object({"label": {"enum": task.classes or []}, "scores": _scores(task)})


def _some_classes(task: Any) -> Schema:
    labels = {"type": "array", "items": {"enum": task.classes or []}, "uniqueItems": True}
    return _object({"labels": labels, "scores": _scores(task)})


def _scores(task: Any) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(task.names, _PROBABILITY)}


def _tags(task: Any) -> Schema:
    place = {"type": "integer", "minimum": 0}
    entity = _object({"type": {"enum": task.entities or []}, "start": place, "end": place})
    return _object(
        {
            "tags": {"type": "array", "items": {"enum": task.tags}},
            "entities": {"type": "array", "items": entity, "description": "words from start to before end"},
        }
    )


def _match(task: Any) -> Schema:
    score = {**_PROBABILITY, "type": ["number", "null"]}
    return _object({"match": {"type": ["boolean", "null"]}, "score": score})


def _embeddings(task: Any) -> Schema:
    vector = {"type": "array", "items": {"type": "number"}, "minItems": task.dim, "maxItems": task.dim}
    vectors = {"type": "object", "properties": dict.fromkeys(task.inputs, vector)}
    similarity = {"type": ["number", "null"], "minimum": -1.0001, "maximum": 1.0001}
    return _object({"embeddings": vectors, "similarity": similarity})


def _number(name: str) -> Callable[[Any], Schema]:
    return lambda task: _object({name: {"type": "number"}})


_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}

_ANSWERS: dict[str, Callable[[Any], Schema]] = {
    "classification": _one_class,
    "multi_label": _some_classes,
    "ordinal": _one_class,
    "regression": _number("value"),
    "tagging": _tags,
    "matching": _match,
    "retrieval": _embeddings,
    "ranking": _number("score"),
}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _example_value(options: Input) -> Any:
    value = EXAMPLES[options.type]()
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


@cache
def _picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "PNG")
    return file.getvalue()


@cache
def _sound() -> bytes:
    """A fiftieth of a second of a buzz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(8000)
        writer.writeframes(bytes(128 + (64 if i % 40 < 20 else -64) for i in range(160)))
    return file.getvalue()


EXAMPLES: dict[str, Callable[[], bytes | str]] = {
    "image": _picture,
    "audio": _sound,
    "text": lambda: "What is this?",
}
