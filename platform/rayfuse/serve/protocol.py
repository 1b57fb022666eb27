"""Requests and replies of `POST {route}/predict`. Pure functions: no server, no model, no network.

A JSON body is {"inputs": {NAME: value, …}}; a text is a string, a file is {"b64": "…"} or {"url": "…"}, readings,
columns and histories are lists and objects, and null is the same as leaving the input out. An input that takes several
values has a list of them. Several at once: {"instances": [{"inputs": {…}}, …]}. A multipart body has a part per input:
a file part for a file, a field for a text or for JSON; an input that takes several values may have several parts. With
"explain": true beside "inputs" or "instances", or a multipart field `explain`, each answer says why it is so.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rayfuse.errors import BadInput, MissingInput
from rayfuse.modalities import Modality
from rayfuse.serve.multipart import Part, parse_header, split_parts
from rayfuse.serve.problems import Problem
from rayfuse.spec.inputs import Input
from rayfuse.spec.problems import nearest

JSON = "application/json"
MULTIPART = "multipart/form-data"
MAX_INSTANCES = 1000
EXPLAIN = "explain"
_FLAGS = {"true": True, "false": False}
_MAX_SHOWN = 80

Values = dict[str, Any]
"""What one instance gives for each input: bytes for a file, else the value; `Remote` is still to be fetched."""


@dataclass(frozen=True)
class Remote:
    """A file that the caller wants us to fetch."""

    url: str


@dataclass(frozen=True)
class Asked:
    """A parsed request. `several`: it came as a list of instances and is answered with a list."""

    instances: list[Values]
    several: bool
    explain: bool = False
    """Whether the answers are to say why they are so."""


@dataclass(frozen=True)
class Reads:
    """The inputs of the served model, and how each is read."""

    inputs: Mapping[str, Input]
    modalities: Mapping[str, Modality]


def media_type(content_type: str | None, content_encoding: str | None = None) -> str:
    """`JSON` or `MULTIPART`; raises Problem for any other body."""
    name = parse_header(content_type or "")[0]
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise Problem("media-type", f"a body with Content-Encoding {shown(content_encoding)} is not read")
    if name in (JSON, MULTIPART):
        return name
    raise Problem(
        "media-type", f"send {JSON} or {MULTIPART}, not {shown(name) if name else 'an unnamed type'}"
    )


def parse(body: bytes, content_type: str, reads: Reads) -> Asked:
    """The instances of a request body. Raises Problem for whatever is wrong with its form."""
    if media_type(content_type) == JSON:
        return _parse_json(body, reads)
    parts = split_parts(body, parse_header(content_type)[1].get("boundary", ""))
    asked = [part for part in parts if part.name == EXPLAIN and EXPLAIN not in reads.inputs]
    values = _from_parts([part for part in parts if part not in asked], reads)
    return Asked([values], several=False, explain=_form_flag(asked))


def require(asked: Asked, reads: Reads) -> None:
    """Raise Problem that names the first required input that an instance lacks."""
    for index, values in enumerate(asked.instances):
        place = _Place(index if asked.several else None)
        for name, options in reads.inputs.items():
            if options.taken_from not in values and name not in values and not options.optional:
                place.refuse("missing-input", f"{name}: missing, and this input is required", input=name)
        if not values:
            place.refuse("missing-input", f"no input given; this model reads: {', '.join(reads.inputs)}")


def explain(error: BadInput, asked: Asked, index: int, reads: Reads) -> Problem:
    """The problem of an input that could not be read, with its name where the error starts with it."""
    name = str(error).partition(":")[0]
    about = {"input": name} if name in reads.inputs else {}
    kind = "missing-input" if isinstance(error, MissingInput) else "broken-input"
    return _Place(index if asked.several else None).problem(kind, str(error), **about)


def reply(asked: Asked, answers: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> dict[str, Any]:
    """{"outputs", "inputs_used", "model"}, or {"predictions": [{"outputs", "inputs_used"}, …], "model"}.

    Answers that were to be explained also have "explain".
    """
    if asked.several:
        return {"predictions": list(answers), "model": model}
    return {**answers[0], "model": model}


def shown(value: Any) -> str:
    """Something that a caller sent, short enough to say back."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


@dataclass(frozen=True)
class _Place:
    """Where in a request something is wrong: in which instance, if there are several."""

    index: int | None

    def problem(self, kind: str, detail: str, **about: Any) -> Problem:
        if self.index is None:
            return Problem(kind, detail, **about)
        return Problem(kind, f"instances[{self.index}]: {detail}", index=self.index, **about)

    def refuse(self, kind: str, detail: str, **about: Any) -> NoReturn:
        raise self.problem(kind, detail, **about)


def _parse_json(body: bytes, reads: Reads) -> Asked:
    content = _load(body)
    if not isinstance(content, dict):
        raise Problem("malformed", f'a JSON object {{"inputs": {{…}}}} belongs here, not {_kind(content)}')
    unknown = [key for key in content if key not in ("inputs", "instances", EXPLAIN)]
    if unknown:
        near = nearest(unknown[0], ["inputs", "instances", EXPLAIN])
        raise Problem("malformed", f"{shown(unknown[0])}: unknown member; {near}")
    explain = content.pop(EXPLAIN, False)
    if not isinstance(explain, bool):
        raise Problem("malformed", f"{EXPLAIN}: true or false belongs here, not {_kind(explain)}")
    if len(content) != 1:
        raise Problem("malformed", 'give either "inputs" or "instances"')
    if "inputs" in content:
        return Asked([_from_json(content, reads, _Place(None))], several=False, explain=explain)
    return Asked(_instances(content["instances"], reads), several=True, explain=explain)


def _form_flag(parts: Sequence[Part]) -> bool:
    """A field of a form that says `true` or `false`; one that is absent or left empty says false."""
    if len(parts) > 1:
        raise Problem("malformed", f"{EXPLAIN}: given twice")
    said = parts[0].content.decode("utf-8", "replace").strip().lower() if parts else ""
    if said not in ("", *_FLAGS):
        raise Problem("malformed", f"{EXPLAIN}: true or false belongs here, not {shown(said)}")
    return _FLAGS.get(said, False)


def _instances(found: Any, reads: Reads) -> list[Values]:
    if not isinstance(found, list) or not found:
        raise Problem(
            "malformed", f'instances: a list of {{"inputs": {{…}}}} belongs here, not {_kind(found)}'
        )
    if len(found) > MAX_INSTANCES:
        raise Problem(
            "too-large", f"instances: {len(found)} of them; send at most {MAX_INSTANCES} in a request"
        )
    return [_from_json(instance, reads, _Place(index)) for index, instance in enumerate(found)]


def _from_json(instance: Any, reads: Reads, place: _Place) -> Values:
    if not isinstance(instance, dict) or list(instance) != ["inputs"]:
        place.refuse("malformed", f'{{"inputs": {{…}}}} belongs here, not {_kind(instance)}')
    inputs = instance["inputs"]
    if not isinstance(inputs, dict):
        place.refuse("malformed", f"inputs: an object belongs here, not {_kind(inputs)}")
    values = {}
    for name, value in inputs.items():
        _check_name(name, reads, place)
        if value is not None:
            values[name] = _json_values(name, value, reads, place)
    return values


def _json_values(name: str, value: Any, reads: Reads, place: _Place) -> Any:
    most, modality = reads.inputs[name].max_items, reads.modalities[name]
    if most == 1:
        return _json_value(name, value, modality, place)
    if not isinstance(value, list):
        detail = f"{name}: a list of up to {most} values belongs here, not {_kind(value)}"
        place.refuse("malformed", detail, input=name)
    _check_count(name, len(value), most, place)
    return [_json_value(name, item, modality, place) for item in value if item is not None]


def _check_count(name: str, given: int, most: int, place: _Place) -> None:
    if given > most:
        place.refuse("broken-input", f"{name}: {given} values; at most {most} are read", input=name)


def _json_value(name: str, value: Any, modality: Modality, place: _Place) -> Any:
    if "file" not in modality.forms or ("json" in modality.forms and not _is_file(value)):
        return _whole_text(name, value, place)
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in ("b64", "url"):
        form = 'a file belongs here: {"b64": "…"} or {"url": "…"}'
        place.refuse("malformed", f"{name}: {form}, not {_kind(value)}", input=name)
    [(kind, content)] = value.items()
    if not isinstance(content, str):
        place.refuse("malformed", f"{name}.{kind}: a string belongs here, not {_kind(content)}", input=name)
    if kind == "url":
        return Remote(content)
    try:
        return _decode(content)
    except ValueError as error:
        place.refuse("malformed", f"{name}.b64: not base64: {error}", input=name)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("b64", "url")


def _whole_text(name: str, value: Any, place: _Place) -> Any:
    """JSON can spell half of a surrogate pair, which no tokenizer reads."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            place.refuse("broken-input", f"{name}: the text holds half of a surrogate pair", input=name)
    return value


def _decode(text: str) -> bytes:
    """Base64, also as `base64` prints it, in lines."""
    if "\n" in text or "\r" in text:
        text = text.replace("\n", "").replace("\r", "")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _load(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number, object_pairs_hook=_distinct)
    except RecursionError:
        raise Problem("malformed", "the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Problem("malformed", f"the body is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise Problem("malformed", f"the body is not JSON: {error}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"member {shown(twice)} is given twice")
    return found


def _from_parts(parts: Sequence[Part], reads: Reads) -> Values:
    values: Values = {}
    place = _Place(None)
    for part in parts:
        _check_name(part.name, reads, place)
        most, modality = reads.inputs[part.name].max_items, reads.modalities[part.name]
        if part.name in values and (most == 1 or part.media_type == JSON):
            raise Problem("malformed", f"{part.name}: given twice", input=part.name)
        if "text" not in modality.forms and part.nothing_chosen:
            continue
        _check_media_type(part, modality)
        if part.media_type == JSON:  # as in a JSON body
            values[part.name] = _json_values(part.name, _part_json(part), reads, place)
        elif most == 1:
            values[part.name] = _part_value(part, modality)
        else:
            values.setdefault(part.name, []).append(_part_value(part, modality))
            _check_count(part.name, len(values[part.name]), most, place)
    return values


def _part_value(part: Part, modality: Modality) -> Any:
    is_field = part.filename is None
    if is_field and modality.forms == ("file",) and part.media_type in (None, "text/plain"):
        detail = f"{part.name}: a file belongs here, not a text; with curl: -F {part.name}=@FILE"
        raise Problem("malformed", detail, input=part.name)
    if (
        "json" in modality.forms
        and "text" not in modality.forms
        and (is_field or "file" not in modality.forms)
    ):
        return _part_json(part)
    if "file" in modality.forms:
        return part.content
    try:
        return part.content.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"{part.name}: not UTF-8 (byte {error.start})"
        raise Problem("broken-input", detail, input=part.name) from None


def _part_json(part: Part) -> Any:
    try:
        return _load(part.content)
    except Problem as problem:
        detail = problem.detail.replace("the body", "its part")
        raise Problem(problem.kind, f"{part.name}: {detail}", input=part.name) from None


def _check_media_type(part: Part, modality: Modality) -> None:
    """A part may leave out its type; `text/plain` also stands for a missing one, as RFC 7578 says."""
    given = part.media_type
    if given is None or any(given.startswith(allowed) for allowed in modality.media_types):
        return
    allowed = ", ".join(f"{name}*" if name.endswith("/") else name for name in modality.media_types)
    raise Problem(
        "media-type", f"{part.name}: {shown(given)} is not read here; send {allowed}", input=part.name
    )


def _check_name(name: str, reads: Reads, place: _Place) -> None:
    if name not in reads.inputs:
        near = nearest(name, list(reads.inputs))
        place.refuse("unknown-input", f"{shown(name)}: not an input of this model; {near}", input=shown(name))


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "this object", list: "a list", str: "a string", int: "a number", float: "a number"}
    if value == []:
        return "an empty list"
    return names.get(type(value), type(value).__name__)
