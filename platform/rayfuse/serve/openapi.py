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
from rayfuse.serve.protocol import EXPLAIN, JSON, MAX_INSTANCES, MULTIPART
from rayfuse.spec.inputs import Input, NumberColumn, SequenceInput, SeriesInput, TableInput
from rayfuse.spec.job import Job
from rayfuse.spec.tasks import Task

_SHOWN = 3

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
    own = {name: options for name, options in job.inputs.items() if options.taken_from is None}
    return {"inputs": {name: _example_values(options) for name, options in own.items()}}


def _about(job: Job) -> str:
    optional = [name for name, options in job.inputs.items() if not options.demanded]
    text = f"Reads {', '.join(job.inputs)}; answers {', '.join(job.tasks)}."
    return f"{text} May be left out: {', '.join(optional)}." if optional else text


def _predict(job: Job) -> Schema:
    required = set(_required(job))
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
    one = _object({"inputs": _ref("Inputs")})
    request = {**one, "properties": {**one["properties"], EXPLAIN: _explain_flag()}}
    requests = _several("instances", one, maxItems=MAX_INSTANCES)
    requests["properties"][EXPLAIN] = _explain_flag()
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
        "Request": request,
        "Requests": requests,
        "Explanation": _explanation(job),
        "Reply": _explained(_object({**answer, "model": model})),
        "Replies": _several("predictions", _explained(_object(answer)), model=model),
        "Problem": _object(
            {k: {"type": "string"} for k in ("type", "title", "detail")} | {"status": {"type": "integer"}}
        ),
    }


def _explain_flag() -> Schema:
    about = "say of each answer why it is so; slower, and refused while many others are being explained"
    return {"type": "boolean", "default": False, "description": about}


def _explained(answer: Schema) -> Schema:
    """An answer with a member that is there on request alone."""
    return {**answer, "properties": {**answer["properties"], EXPLAIN: _ref("Explanation")}}


def _explanation(job: Job) -> Schema:
    """What `rayfuse.model.explain.plain` makes."""
    number = {"type": "number"}
    by_input = {"type": "object", "properties": dict.fromkeys(job.inputs, number)}
    numbers: Schema = {"type": "array", "items": number}
    salient = {
        "description": "a picture: rows of sums over equal parts; a clip or video: sums over equal parts of its time; "
        "an input of several items: one of these for each. For a class in log-odds",
        "oneOf": [
            numbers,
            {"type": "array", "items": numbers},
            {"type": "array", "items": {"type": "array", "items": numbers}},
        ],
    }
    task = _object(
        {
            "score": {"type": "string", "description": "the number that is explained"},
            "value": {**number, "description": "of this answer, from all inputs used"},
            "base": {**number, "description": "of the same answer, from no input"},
            "contributions": {**by_input, "description": "Shapley values; they sum to value - base"},
        }
    )
    task["properties"]["saliency"] = {"type": "object", "properties": dict.fromkeys(job.inputs, salient)}
    tasks = {"type": "object", "properties": dict.fromkeys(job.tasks, task)}
    attention = {**by_input, "description": "how much the fusion looked at each input, where it attends"}
    return {"type": "object", "properties": {"tasks": tasks, "attention": attention}, "required": ["tasks"]}


def _several(name: str, items: Schema, model: Schema | None = None, **limits: int) -> Schema:
    array = {"type": "array", "items": items, "minItems": 1, **limits}
    return _object({name: array, **({"model": model} if model else {})})


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _required(job: Job) -> list[str]:
    return [name for name, options in job.inputs.items() if options.demanded]


def _inputs(job: Job) -> Schema:
    properties = {name: _described(options, _value(options)) for name, options in job.inputs.items()}
    schema = {"type": "object", "properties": properties, "required": _required(job)}
    return {**schema, "additionalProperties": False}


def _form(job: Job) -> Schema:
    properties = {name: _described(options, _part(options)) for name, options in job.inputs.items()}
    properties = {EXPLAIN: _explain_flag(), **properties}
    return {"type": "object", "properties": properties, "required": _required(job)}


def _described(options: Input, one: Schema) -> Schema:
    several = {"type": "array", "items": one, "maxItems": options.max_items}
    return {**(one if options.max_items == 1 else several), "description": _say(options)}


def _value(options: Input) -> Schema:
    """What a JSON body gives."""
    forms = MODALITIES[options.type].forms
    if forms == ("file",):
        return _ref("File")
    own = SCHEMAS[options.type](options)
    return {"anyOf": [own, _ref("File")]} if "file" in forms else own


def _part(options: Input) -> Schema:
    """What a part of a form gives."""
    forms = MODALITIES[options.type].forms
    if "file" in forms:
        return {"type": "string", "format": "binary"}
    own = {"type": "string"} if "text" in forms else SCHEMAS[options.type](options)
    return {**own, "examples": [_example_value(options)]}


def _text(_: Any) -> Schema:
    return {"type": ["string", "array"], "items": {"type": "string"}}


def _series(options: SeriesInput) -> Schema:
    steps = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1}
    channels = {"type": "array", "items": steps, "minItems": options.count, "maxItems": options.count}
    if options.names is None:
        return channels
    named = {**_object(dict.fromkeys(options.names, steps)), "description": "readings of each channel"}
    return {"anyOf": [channels, named]}


def _table(options: TableInput) -> Schema:
    number = {"type": ["number", "null"]}
    category = {"type": ["string", "number", "boolean", "null"]}
    columns = {
        name: {**category, "examples": options.categories[name][:_SHOWN]}
        if name in options.categories
        else number
        for name in options.columns
    }
    return {"type": "object", "properties": columns, "additionalProperties": False}


def _sequence(_: Any) -> Schema:
    item = {"type": ["string", "number"]}
    time = {"type": ["number", "string"], "description": "seconds, or a date and time of ISO 8601"}
    return {"type": "array", "minItems": 1, "items": {"anyOf": [item, _object({"id": item, "time": time})]}}


SCHEMAS: dict[str, Callable[[Any], Schema]] = {
    "text": _text,
    "series": _series,
    "table": _table,
    "sequence": _sequence,
}
"""What JSON gives for the inputs that are not only files."""


def _encoding(job: Job) -> Schema:
    def types(options: Input) -> str:
        return ", ".join(f"{t}*" if t.endswith("/") else t for t in MODALITIES[options.type].media_types)

    return {name: {"contentType": types(options)} for name, options in job.inputs.items()}


def _file() -> Schema:
    b64 = {"type": "string", "contentEncoding": "base64", "description": "the file's bytes in base64"}
    url = {"type": "string", "format": "uri", "description": "a public http or https address of the file"}
    return {"oneOf": [_object({"b64": b64}), _object({"url": url})]}


def _say(options: Input) -> str:
    """What is read of a value."""
    text = SAYS[options.type](options)
    if options.taken_from is not None:
        text += f"; that of {options.taken_from} where it is left out"
    text += f"; up to {options.max_items} of them" if options.max_items > 1 else ""
    return f"{text} (may be left out)" if options.optional else text


SAYS: dict[str, Callable[[Any], str]] = {
    "image": lambda o: f"a picture; resized to {o.size} × {o.size} pixels",
    "audio": lambda o: f"a sound file; the first {o.max_seconds:g} s are heard",
    "text": lambda o: f"a text; the first {o.max_tokens} tokens are read",
    "video": lambda o: f"a video; {o.frames} frames of its first {o.max_seconds:g} s are looked at",
    "series": lambda o: f"readings of {o.count} channels; the newest {o.max_steps} steps are read",
    "table": lambda o: f"values of the columns {', '.join(o.columns)}; null or left out where missing",
    "sequence": lambda o: f"ids, the oldest first, or ids with times; the newest {o.length} are read",
}


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


def _example_values(options: Input) -> Any:
    value = _example_value(options)
    return value if options.max_items == 1 else [value]


def _example_value(options: Input) -> Any:
    value = EXAMPLES[options.type](options)
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _example_series(options: SeriesInput) -> Any:
    middle = options.center or [0.0] * options.count
    readings = [[round(value, 3), None, round(value, 3)] for value in middle]
    return readings if options.names is None else dict(zip(options.names, readings, strict=True))


def _example_row(options: TableInput) -> dict[str, Any]:
    numbers = {
        name: column.center for name, column in options.columns.items() if isinstance(column, NumberColumn)
    }
    categories = {name: (known[0] if known else None) for name, known in options.categories.items()}
    return {name: {**numbers, **categories}[name] for name in options.columns}


def _example_history(options: SequenceInput) -> list[str]:
    return (options.vocabulary or ["item"])[:_SHOWN]


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


@cache
def _clip() -> bytes:
    """A quarter of a second of grey, with sound."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=8)
        video.width = video.height = 16
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for shade in (96, 160):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), shade, dtype=np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        tone = (0.2 * np.sin(np.arange(2048) * 0.2)).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    return file.getvalue()


EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "image": lambda _: _picture(),
    "audio": lambda _: _sound(),
    "video": lambda _: _clip(),
    "text": lambda _: "What is this?",
    "series": _example_series,
    "table": _example_row,
    "sequence": _example_history,
}
"""A value of each kind of input that the model with these options answers."""
