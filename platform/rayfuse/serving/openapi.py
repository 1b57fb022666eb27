"""OpenAPI document of an endpoint, built from the inputs and tasks of the served model."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from rayfuse import __version__
from rayfuse.data.row_adapter import describe_inputs
from rayfuse.modalities import build_modality
from rayfuse.modalities.base import Schema, object_schema
from rayfuse.model.prediction_schema import output_schemas
from rayfuse.serving.client import MODEL_EXTENSION
from rayfuse.serving.engine import MAX_EXPLAIN_INSTANCES
from rayfuse.serving.openai_openapi import openai_paths, openai_schemas
from rayfuse.serving.problems import MEDIA_TYPE, PROBLEM_TYPES
from rayfuse.serving.protocol import EXPLAIN, JSON, MAX_INSTANCES, MULTIPART, STREAM
from rayfuse.serving.streaming import EVENTS
from rayfuse.spec.inputs import Input
from rayfuse.spec.job import Job


def build_openapi(
    job: Job,
    model: Mapping[str, Any],
    root: str,
    requires_api_key: bool,
    text_models: Sequence[str] = (),
    embedders: Sequence[str] = (),
) -> Schema:
    """Build the OpenAPI 3.1 document of an endpoint.

    `job`: the fitted job of the served model; `model`: its name and version; `root`: path prefix of the endpoint;
    `text_models`, `embedders`: names by which the OpenAI routes call what writes and what embeds texts.
    """
    described = f"{model['name']} {model['version']}" if model.get("version") else str(model["name"])
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": job.name,
            "version": str(model.get("version") or __version__),
            "description": _model_description(job),
        },
        "servers": [{"url": root or "/", "description": f"model {described}"}],
        "paths": {"/predict": {"post": _predict_operation(job)}, **health_paths()},
        "components": {"schemas": _schemas(job)},
        MODEL_EXTENSION: _model_extension(job, model),
    }
    if text_models or embedders:
        schemas = document["components"]["schemas"]
        document["paths"] |= openai_paths(text_models, embedders, {**schemas["Inputs"], "required": []})
        schemas |= openai_schemas()
    if text_models:
        _add_text_streams(document, job)
    return add_api_key(document) if requires_api_key else document


def add_api_key(document: Schema) -> Schema:
    """Add the API key to the operations of a document that require one, and return it."""
    scheme = {"type": "http", "scheme": "bearer", "description": "one of the endpoint's API keys"}
    document["components"]["securitySchemes"] = {"key": scheme}
    for path, operations in document["paths"].items():
        for operation in operations.values() if not path.startswith("/v2/") else ():
            operation["security"] = [{"key": []}]
    return document


def _add_text_streams(document: Schema, job: Job) -> None:
    """Add the streams of /predict."""
    schemas = document["components"]["schemas"]
    about = "send events with the parts of the texts as they are written, then one with the response"
    option = {"type": "boolean", "default": False, "description": about}
    predict = document["paths"]["/predict"]["post"]
    form = predict["requestBody"]["content"][MULTIPART]["schema"]
    for schema in (schemas["Request"], *([form] if STREAM not in job.inputs else [])):
        schema["properties"][STREAM] = option
    predict["responses"]["200"]["content"][EVENTS] = {"schema": {"type": "string"}}


def _model_extension(job: Job, model: Mapping[str, Any]) -> Schema:
    """Return what clients need to convert rows to requests: `name`, `version`, `inputs` and the types of the `tasks`."""
    inputs = {name: one.to_json() for name, one in describe_inputs(job.inputs, job.data).items()}
    return {**model, "inputs": inputs, "tasks": {name: task.type for name, task in job.tasks.items()}}


def example_request(job: Job) -> dict[str, Any]:
    """Return a valid request body, without inputs that fall back to another one or have no example."""
    values = {
        name: _example_values(options)
        for name, options in job.inputs.items()
        if options.fallback_input is None
    }
    return {"inputs": {name: value for name, value in values.items() if value is not None}}


def _model_description(job: Job) -> str:
    optional = [name for name, options in job.inputs.items() if not options.required_in_request]
    text = f"Inputs: {', '.join(job.inputs)}. Tasks: {', '.join(job.tasks)}."
    return f"{text} Optional: {', '.join(optional)}." if optional else text


def _predict_operation(job: Job) -> Schema:
    return {
        "operationId": "predict",
        "tags": ["model"],
        "summary": "Predict",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": {"oneOf": [_ref("Request"), _ref("BatchRequest")]},
                    "examples": _examples(job),
                },
                MULTIPART: {"schema": _form_schema(job), "encoding": _encoding(job)},
            },
        },
        "responses": {
            "200": {
                "description": "The prediction",
                "headers": {
                    "Server-Timing": {"description": "Durations in ms", "schema": {"type": "string"}}
                },
                "content": {JSON: {"schema": {"oneOf": [_ref("Response"), _ref("BatchResponse")]}}},
            },
            **_problem_responses(),
        },
    }


def _examples(job: Job) -> Schema:
    """Return example requests by name; none if a required input has no example."""
    complete, required = example_request(job), _required(job)
    if not all(name in complete["inputs"] for name in required):
        return {}
    short = {"inputs": {name: complete["inputs"][name] for name in required}} if required else complete
    examples = {"one": {"summary": "all inputs", "value": complete}}
    if short != complete:
        examples["required"] = {"summary": "required inputs only", "value": short}
    examples["several"] = {"summary": "several instances", "value": {"instances": [complete, short]}}
    return examples


def health_paths() -> Schema:
    """Return the paths of the health checks."""

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
        "/v2/health/live": get("live", "The server is running"),
        "/v2/health/ready": get("ready", "The model is ready for requests"),
    }


def _problem_responses() -> Schema:
    found: dict[int, list[str]] = {}
    for kind, (status, title) in PROBLEM_TYPES.items():
        found.setdefault(status, []).append(f"{title} (`{kind}`)")
    content = {MEDIA_TYPE: {"schema": _ref("Problem")}}
    return {
        str(status): {"description": "; ".join(titles), "content": content}
        for status, titles in found.items()
    }


def _schemas(job: Job) -> Schema:
    one = object_schema({"inputs": _ref("Inputs")})
    request = {**one, "properties": {**one["properties"], EXPLAIN: _explain_option()}}
    requests = _list_schema("instances", one, maxItems=MAX_INSTANCES)
    requests["properties"][EXPLAIN] = _explain_option()
    requests["properties"]["instances"]["description"] = f"with `{EXPLAIN}` at most {MAX_EXPLAIN_INSTANCES}"
    outputs = output_schemas(job)
    response = {
        "outputs": {"type": "object", "properties": outputs, "required": list(outputs)},
        "inputs_used": {"type": "array", "items": {"enum": list(job.inputs)}},
    }
    model = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "version": {"type": ["integer", "string", "null"]}},
    }
    return {
        "File": _file_schema(),
        "Inputs": _inputs_schema(job),
        "Request": request,
        "BatchRequest": requests,
        "Explanation": _explanation_schema(job),
        "Response": _with_sources(job, _with_explanation(object_schema({**response, "model": model}))),
        "BatchResponse": _list_schema(
            "predictions", _with_sources(job, _with_explanation(object_schema(response))), model=model
        ),
        "Problem": object_schema(
            {k: {"type": "string"} for k in ("type", "title", "detail")} | {"status": {"type": "integer"}}
        ),
    }


def _with_sources(job: Job, response: Schema) -> Schema:
    """Add the passages of inputs with `retrieve` to the schema of a response."""
    names = [name for name, options in job.inputs.items() if getattr(options, "retrieve", None)]
    if not names:
        return response
    passage = object_schema({"similarity": {"type": "number"}, "values": {"type": "object"}})
    passages = {
        "type": "array",
        "items": passage,
        "description": "passages that were found, the nearest first",
    }
    sources = {"type": "object", "properties": dict.fromkeys(names, passages)}
    return {**response, "properties": {**response["properties"], "sources": sources}}


def _explain_option() -> Schema:
    about = "also explain each prediction; slower, and rejected while many others are being explained"
    return {"type": "boolean", "default": False, "description": about}


def _with_explanation(response: Schema) -> Schema:
    """Add the optional explanation to the schema of a response."""
    return {**response, "properties": {**response["properties"], EXPLAIN: _ref("Explanation")}}


def _explanation_schema(job: Job) -> Schema:
    """Return the JSON Schema of `rayfuse.model.explain.to_json`."""
    number = {"type": "number"}
    by_input = {"type": "object", "properties": dict.fromkeys(job.inputs, number)}
    numbers: Schema = {"type": "array", "items": number}
    salient = {
        "description": "images: rows of sums over equal parts; audio and video: sums over equal parts of the time; "
        "an input of several items: one of these for each. For a class in log-odds",
        "oneOf": [
            numbers,
            {"type": "array", "items": numbers},
            {"type": "array", "items": {"type": "array", "items": numbers}},
        ],
    }
    task = object_schema(
        {
            "score": {"type": "string", "description": "name of the explained number"},
            "value": {**number, "description": "of this prediction, from all inputs used"},
            "base_value": {**number, "description": "of the same prediction, without any input"},
            "contributions": {**by_input, "description": "Shapley values; they sum to value - base_value"},
        }
    )
    task["properties"]["saliency"] = {"type": "object", "properties": dict.fromkeys(job.inputs, salient)}
    tasks = {"type": "object", "properties": dict.fromkeys(job.tasks, task)}
    attention = {**by_input, "description": "attention weight of each input, if the fusion has attention"}
    return {"type": "object", "properties": {"tasks": tasks, "attention": attention}, "required": ["tasks"]}


def _list_schema(name: str, items: Schema, model: Schema | None = None, **limits: int) -> Schema:
    array = {"type": "array", "items": items, "minItems": 1, **limits}
    return object_schema({name: array, **({"model": model} if model else {})})


def _required(job: Job) -> list[str]:
    return [name for name, options in job.inputs.items() if options.required_in_request]


def _inputs_schema(job: Job) -> Schema:
    properties = {name: _json_property(options) for name, options in job.inputs.items()}
    schema = {"type": "object", "properties": properties, "required": _required(job)}
    return {**schema, "additionalProperties": False}


def _json_property(options: Input) -> Schema:
    """Return the JSON Schema of an input in a JSON body, where null stands for an absent value."""
    one = _value_schema(options)
    schema = one if options.max_items == 1 else _several(options, _nullable(one))
    if not options.required_in_request:
        schema = _nullable(schema)
    return {**schema, "description": _input_description(options)}


def _nullable(schema: Schema) -> Schema:
    null = {"type": "null"}
    if not schema:
        return schema  # accepts null, too
    if "type" in schema and not schema.keys() & {"const", "enum"}:
        kinds = schema["type"]
        return {**schema, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}
    return {**schema, "anyOf": [*schema["anyOf"], null]} if "anyOf" in schema else {"anyOf": [schema, null]}


def _several(options: Input, one: Schema) -> Schema:
    return {"type": "array", "items": one, "maxItems": options.max_items}


def _form_schema(job: Job) -> Schema:
    properties = {EXPLAIN: _explain_option(), **{name: _form_property(o) for name, o in job.inputs.items()}}
    return {"type": "object", "properties": properties, "required": _required(job)}


def _form_property(options: Input) -> Schema:
    """Return the JSON Schema of an input in a form."""
    one = _part_schema(options)
    schema = one if options.max_items == 1 else _several(options, one)
    return {**schema, "description": _input_description(options)}


def _value_schema(options: Input) -> Schema:
    """Return the JSON Schema of a value in a JSON body."""
    modality = build_modality(options)
    if modality.value_formats == ("file",):
        return _ref("File")
    schema = modality.json_schema()
    return {"anyOf": [schema, _ref("File")]} if "file" in modality.value_formats else schema


def _part_schema(options: Input) -> Schema:
    """Return the JSON Schema of a part of a form."""
    modality = build_modality(options)
    if "file" in modality.value_formats:
        return {"type": "string", "format": "binary"}
    schema = {"type": "string"} if "text" in modality.value_formats else modality.json_schema()
    example = modality.example()
    return schema if example is None else {**schema, "examples": [example]}


def _encoding(job: Job) -> Schema:
    def content_type(options: Input) -> str:
        types = build_modality(options).media_types
        return ", ".join(f"{name}*" if name.endswith("/") else name for name in types)

    return {name: {"contentType": content_type(options)} for name, options in job.inputs.items()}


def _file_schema() -> Schema:
    b64 = {"type": "string", "contentEncoding": "base64", "description": "the file's bytes in base64"}
    url = {
        "type": "string",
        "format": "uri",
        "description": "a public http or https URL of the file, or a data: URI",
    }
    return {"oneOf": [object_schema({"b64": b64}), object_schema({"url": url})]}


def _input_description(options: Input) -> str:
    text = build_modality(options).description()
    if options.fallback_input is not None:
        text += f"; taken from {options.fallback_input} if left out"
    text += f"; up to {options.max_items} of them" if options.max_items > 1 else ""
    return f"{text} (optional)" if options.optional else text


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _example_values(options: Input) -> Any:
    value = build_modality(options).example()
    if isinstance(value, bytes):
        value = {"b64": base64.b64encode(value).decode()}
    return value if options.max_items == 1 or value is None else [value]
