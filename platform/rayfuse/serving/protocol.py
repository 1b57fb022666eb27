"""Parse requests and build responses of `POST {route}/predict`, without a server, a model or a network.

A JSON body is {"inputs": {NAME: value, …}}. A text is a string, a file is {"b64": "…"} or {"url": "…"}, which may be
a `data:` URI, and time series, tabular values and item sequences are lists and objects; null is the same as an absent input. An input with
max_items above 1 is a list. Several instances: {"instances": [{"inputs": {…}}, …]}. A multipart body has a part per
input: a file part for a file, a field for a text or JSON; an input with max_items above 1 may have several parts.
"explain": true next to "inputs" or "instances", or a multipart field `explain`, adds an explanation to each prediction.
"stream": true next to "inputs", or a multipart field `stream`, asks for the texts of the prediction as they are written.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rayfuse.data.base64_values import decode_base64, is_data_uri
from rayfuse.data.row_adapter import explain_unknown_input
from rayfuse.errors import InvalidInputError, MissingInputError
from rayfuse.formatting import format_bytes, truncate
from rayfuse.modalities import Modality
from rayfuse.serving.multipart import Part, parse_header, split_parts
from rayfuse.serving.problems import ProblemError
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.inputs import Input
from rayfuse.spec.nesting import TOO_DEEP, is_too_deep, json_memory

JSON = "application/json"
MULTIPART = "multipart/form-data"
MAX_INSTANCES = 1000
_MAX_JSON_BYTES = 400_000_000
EXPLAIN, STREAM = "explain", "stream"
_FLAGS = (EXPLAIN, STREAM)
_STORED_FILE = "binary/octet-stream"
"""Media type of files in S3 without a stated type."""
_BOOLEANS = {"true": True, "false": False}

Values = dict[str, Any]
"""Values of one instance by input name: bytes for a file, `RemoteFile` for one to be fetched, else the value."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a request gives by its URL."""

    url: str
    """URL of the file."""


@dataclass(frozen=True)
class PredictRequest:
    """A parsed request."""

    instances: list[Values]
    """Values of each instance."""
    is_batch: bool
    """True if the body has `instances`, so that the response has `predictions`."""
    explain: bool = False
    """True if to explain each prediction."""
    stream: bool = False
    """True if to send texts as they are written."""


@dataclass(frozen=True)
class ModelSignature:
    """The inputs of the served model by name."""

    inputs: Mapping[str, Input]
    """Spec of each input."""
    modalities: Mapping[str, Modality]
    """Preprocessing of each input."""


def resolve_media_type(content_type: str | None, content_encoding: str | None = None) -> str:
    """Return `JSON` or `MULTIPART`; raise ProblemError for any other media type or a compressed body."""
    name = parse_header(content_type or "")[0]
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise ProblemError(
            "media-type",
            f"Content-Encoding: {truncate(content_encoding)} is not supported; send the body uncompressed",
        )
    if name in (JSON, MULTIPART):
        return name
    raise ProblemError(
        "media-type",
        f"Content-Type: {truncate(name) if name else 'missing'}; send {JSON} or {MULTIPART}",
    )


def parse(body: bytes, content_type: str, signature: ModelSignature) -> PredictRequest:
    """Parse a request body; raise ProblemError where it is malformed or names an unknown input."""
    if resolve_media_type(content_type) == JSON:
        return _parse_json(body, signature)
    parts = split_parts(body, parse_header(content_type)[1].get("boundary", ""))
    flags = [part for part in parts if part.name in _FLAGS and part.name not in signature.inputs]
    values = _parse_parts([part for part in parts if part not in flags], signature)
    fields = {name: _parse_flag(name, [part for part in flags if part.name == name]) for name in _FLAGS}
    return PredictRequest([values], is_batch=False, **fields)


def parse_inputs(inputs: Mapping[str, Any], signature: ModelSignature) -> Values:
    """Return the values of a JSON object with a member per input; raise ProblemError where one is malformed or unknown."""
    return _parse_instance({"inputs": dict(inputs)}, signature, _ErrorLocation(None))


def check_required(request: PredictRequest, signature: ModelSignature) -> None:
    """Raise ProblemError for the first required input that is missing from an instance."""
    for index, values in enumerate(request.instances):
        location = _ErrorLocation(index if request.is_batch else None)
        for name, options in signature.inputs.items():
            if options.fallback_input not in values and name not in values and not options.optional:
                location.raise_problem(
                    "missing-input", f"{name}: missing, and this input is required", input=name
                )
        if not values:
            location.raise_problem(
                "missing-input", f"no input given; this model has: {', '.join(signature.inputs)}"
            )


def to_problem(error: InvalidInputError, request: PredictRequest, index: int) -> ProblemError:
    """Return the problem of the instance `index` of a request, with the name of the invalid input."""
    members = {} if error.input_name is None else {"input": error.input_name}
    kind = "missing-input" if isinstance(error, MissingInputError) else "invalid-input"
    return _ErrorLocation(index if request.is_batch else None).problem(kind, str(error), **members)


def build_response(
    request: PredictRequest, predictions: Sequence[Mapping[str, Any]], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the response body, {"outputs", "inputs_used", "model"}.

    A batch is {"predictions": [{"outputs", "inputs_used"}, …], "model"}. Explained predictions also have "explain".
    """
    if request.is_batch:
        return {"predictions": list(predictions), "model": model}
    return {**predictions[0], "model": model}


@dataclass(frozen=True)
class _ErrorLocation:
    """The instance of a request that an error belongs to; `index` is None where the request has only one."""

    index: int | None

    def problem(self, kind: str, detail: str, **members: Any) -> ProblemError:
        if self.index is None:
            return ProblemError(kind, detail, **members)
        return ProblemError(kind, f"instances[{self.index}]: {detail}", index=self.index, **members)

    def raise_problem(self, kind: str, detail: str, **members: Any) -> NoReturn:
        raise self.problem(kind, detail, **members)


def _parse_json(body: bytes, signature: ModelSignature) -> PredictRequest:
    content = _load_json(body)
    if not isinstance(content, dict):
        raise ProblemError(
            "malformed", f'the body must be a JSON object {{"inputs": {{…}}}}, not {_describe_type(content)}'
        )
    members = ["inputs", "instances", *_FLAGS]
    unknown = [key for key in content if key not in members]
    if unknown:
        near = suggest_nearest(unknown[0], members)
        raise ProblemError("malformed", f"{truncate(unknown[0])}: unknown member; {near}")
    flags = {name: content.pop(name, False) for name in _FLAGS}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ProblemError("malformed", f"{name}: must be true or false, not {_describe_type(value)}")
    if len(content) != 1:
        raise ProblemError("malformed", 'send either "inputs" or "instances"')
    if "inputs" in content:
        return PredictRequest(
            [_parse_instance(content, signature, _ErrorLocation(None))], is_batch=False, **flags
        )
    return PredictRequest(_parse_instances(content["instances"], signature), is_batch=True, **flags)


def _parse_flag(name: str, parts: Sequence[Part]) -> bool:
    if len(parts) > 1:
        raise ProblemError("malformed", f"{name}: given twice")
    text = parts[0].content.decode("utf-8", "replace").strip().lower() if parts else ""
    if text not in ("", *_BOOLEANS):
        raise ProblemError("malformed", f"{name}: must be true or false, not {truncate(text)}")
    return _BOOLEANS.get(text, False)


def _parse_instances(found: Any, signature: ModelSignature) -> list[Values]:
    if not isinstance(found, list) or not found:
        raise ProblemError(
            "malformed", f'instances: must be a list of {{"inputs": {{…}}}}, not {_describe_type(found)}'
        )
    if len(found) > MAX_INSTANCES:
        raise ProblemError(
            "too-large",
            f"instances: {len(found)} exceeds the maximum of {MAX_INSTANCES}; send several requests",
        )
    return [
        _parse_instance(instance, signature, _ErrorLocation(index)) for index, instance in enumerate(found)
    ]


def _parse_instance(instance: Any, signature: ModelSignature, location: _ErrorLocation) -> Values:
    if not isinstance(instance, dict) or list(instance) != ["inputs"]:
        location.raise_problem("malformed", f'must be {{"inputs": {{…}}}}, not {_describe_type(instance)}')
    inputs = instance["inputs"]
    if not isinstance(inputs, dict):
        location.raise_problem("malformed", f"inputs: must be an object, not {_describe_type(inputs)}")
    values = {}
    for name, value in inputs.items():
        _check_name(name, signature, location)
        if value is not None:
            values[name] = _parse_json_values(name, value, signature, location)
    return values


def _parse_json_values(name: str, value: Any, signature: ModelSignature, location: _ErrorLocation) -> Any:
    max_items, modality = signature.inputs[name].max_items, signature.modalities[name]
    if max_items == 1:
        return _parse_json_value(name, value, modality, location)
    if not isinstance(value, list):
        detail = f"{name}: must be a list of up to {max_items} values, not {_describe_type(value)}"
        location.raise_problem("malformed", detail, input=name)
    _check_count(name, len(value), max_items, location)
    return [_parse_json_value(name, item, modality, location) for item in value if item is not None]


def _check_count(name: str, count: int, max_count: int, location: _ErrorLocation) -> None:
    if count > max_count:
        detail = f"{name}: {count} values exceed the maximum of {max_count} (max_items)"
        location.raise_problem("invalid-input", detail, input=name)


def _parse_json_value(name: str, value: Any, modality: Modality, location: _ErrorLocation) -> Any:
    if "file" not in modality.value_formats or ("json" in modality.value_formats and not _is_file(value)):
        return _check_unicode(name, value, location)
    if not _is_file(value):
        detail = f'{name}: a file must be {{"b64": "…"}} or {{"url": "…"}}, not {_describe_type(value)}'
        location.raise_problem("malformed", detail, input=name)
    [(kind, content)] = value.items()
    if not isinstance(content, str):
        location.raise_problem(
            "malformed", f"{name}.{kind}: must be a string, not {_describe_type(content)}", input=name
        )
    if kind == "url" and not is_data_uri(content):
        return RemoteFile(content.strip())
    try:
        return decode_base64(content)
    except ValueError as error:
        location.raise_problem("malformed", f"{name}.{kind}: {error}", input=name)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("b64", "url")


def _check_unicode(name: str, value: Any, location: _ErrorLocation) -> Any:
    """Reject lone surrogates, which JSON can express and no tokenizer reads."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            location.raise_problem("invalid-input", f"{name}: the text has a lone surrogate", input=name)
    return value


def _load_json(content: bytes, what: str = "the body") -> Any:
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        check_json_memory(text, what)
        value = json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys)
    except RecursionError:
        raise ProblemError("malformed", f"the JSON is {TOO_DEEP}") from None
    except UnicodeDecodeError as error:
        raise ProblemError("malformed", f"{what} is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise ProblemError("malformed", f"{what} is not JSON: {error}") from None
    if isinstance(value, list | dict) and is_too_deep(value):
        raise ProblemError("malformed", f"the JSON is {TOO_DEEP}")
    return value


def check_json_memory(text: str, what: str = "the body") -> None:
    """Raise ProblemError for a JSON text whose value would take too much memory."""
    if (found := json_memory(text)) > _MAX_JSON_BYTES:
        raise ProblemError(
            "too-large",
            f"{what} takes {format_bytes(found)} of memory as JSON; the maximum is {format_bytes(_MAX_JSON_BYTES)}; "
            "send fewer values, or a file",
        )


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"member {truncate(twice)} is given twice")
    return found


def _parse_parts(parts: Sequence[Part], signature: ModelSignature) -> Values:
    values: Values = {}
    location = _ErrorLocation(None)
    for part in parts:
        _check_name(part.name, signature, location)
        max_items, modality = signature.inputs[part.name].max_items, signature.modalities[part.name]
        if part.name in values and (max_items == 1 or part.media_type == JSON):
            raise ProblemError("malformed", f"{part.name}: given twice", input=part.name)
        if "text" not in modality.value_formats and part.is_empty_file:
            continue
        _check_media_type(part, modality)
        if part.media_type == JSON:  # as in a JSON body
            values[part.name] = _parse_json_values(part.name, _parse_part_json(part), signature, location)
        elif max_items == 1:
            values[part.name] = _parse_part_value(part, modality)
        else:
            values.setdefault(part.name, []).append(_parse_part_value(part, modality))
            _check_count(part.name, len(values[part.name]), max_items, location)
    return values


def _parse_part_value(part: Part, modality: Modality) -> Any:
    is_field = part.filename is None
    if is_field and modality.value_formats == ("file",) and part.media_type in (None, "text/plain"):
        detail = f"{part.name}: must be a file, not a text; with curl: -F {part.name}=@FILE"
        raise ProblemError("malformed", detail, input=part.name)
    if (
        "json" in modality.value_formats
        and "text" not in modality.value_formats
        and (is_field or "file" not in modality.value_formats)
    ):
        return _parse_part_json(part)
    if "file" in modality.value_formats:
        return part.content
    try:
        return part.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{part.name}: not UTF-8 (byte {error.start})"
        raise ProblemError("invalid-input", detail, input=part.name) from None


def _parse_part_json(part: Part) -> Any:
    try:
        return _load_json(part.content, "the part")
    except ProblemError as problem:
        detail = f"{part.name}: {problem.detail}"
        raise ProblemError(problem.problem_type, detail, input=part.name) from None


def _check_media_type(part: Part, modality: Modality) -> None:
    """Check a part's media type, which may be absent (RFC 7578: then it is `text/plain`)."""
    given = part.media_type
    if (
        given is None
        or given == _STORED_FILE
        or any(given.startswith(allowed) for allowed in modality.media_types)
    ):
        return
    allowed = ", ".join(f"{name}*" if name.endswith("/") else name for name in modality.media_types)
    raise ProblemError(
        "media-type", f"{part.name}: {truncate(given)} is not supported; send {allowed}", input=part.name
    )


def _check_name(name: str, signature: ModelSignature, location: _ErrorLocation) -> None:
    if name not in signature.inputs:
        is_column = any(name in options.source_columns for options in signature.inputs.values())
        near = suggest_nearest(name, list(signature.inputs))
        reason = (
            explain_unknown_input(name, signature.inputs)
            if is_column
            else f"not an input of this model; {near}"
        )
        location.raise_problem("unknown-input", f"{truncate(name)}: {reason}", input=truncate(name))


def _describe_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "this object", list: "a list", str: "a string", int: "a number", float: "a number"}
    if value == []:
        return "an empty list"
    return names.get(type(value), type(value).__name__)
