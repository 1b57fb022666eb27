"""Extension of Griffe: docstrings of Rayfuse as Markdown.

Overriding methods get the docstring of the method that they override, descriptions of parameters become a list, and
names of errors become links.
"""

import re
from collections.abc import Iterator
from typing import Any

from griffe import Class, Docstring, ExprSubscript, ExprTuple, Extension, Function, Module, Object


class RayfuseDocstrings(Extension):
    """Prepare the docstrings of a package for the site."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of all its objects."""
        errors = {name: error.path for name, error in pkg["errors"].classes.items()}
        for found in list(_objects(pkg)):
            if isinstance(found, Module):
                _simplify_attributes(found)
            if isinstance(found, Class):
                _remove_assignments_of_init(found)
            if isinstance(found, Function) and found.docstring is None:
                _inherit_docstring(found)
            if found.docstring:
                text = keep_columns(list_parameters(found.docstring.value, _parameters(found)))
                found.docstring.value = link_errors(text, errors)


def list_parameters(text: str, parameters: set[str]) -> str:
    """Write each `name: description` of a parameter in a docstring as an item of a list."""
    if not parameters:
        return text
    start = re.compile(rf"(?:^|(?<=[.)] ))({'|'.join(sorted(parameters))}): ")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        flat = " ".join(line.strip() for line in paragraph.splitlines())
        before, *found = start.split(flat)
        if not found or re.match(r"(Args|Attributes|Raises|Returns|Yields):\n", paragraph):
            paragraphs.append(paragraph)
            continue
        items = [f"- `{name}`: {item.strip()}" for name, item in zip(found[::2], found[1::2], strict=True)]
        items[-1], after = _without_last_sentences(items[-1])
        paragraphs += [part for part in (before.strip(), "\n".join(items), after) if part]
    return "\n\n".join(paragraphs)


def keep_columns(text: str) -> str:
    """Write paragraphs whose lines are aligned in columns as code."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        "```text\n" + paragraph + "\n```" if re.search(r"\S {2,}\S.*\n", paragraph) else paragraph
        for paragraph in paragraphs
    )


def _without_last_sentences(item: str) -> tuple[str, str]:
    """Split the text about errors and results off the last item."""
    found = re.search(r"(?<=\.) (Raises|Returns|Return) ", item)
    return (item[: found.start()], item[found.start() + 1 :]) if found else (item, "")


def link_errors(text: str, errors: dict[str, str]) -> str:
    """Link the names of errors, unless they are code, links, or entries of a section `Raises:`."""
    names = "|".join(sorted(errors, key=len, reverse=True))
    return re.sub(
        rf"(?<![`\w.\[])({names})(?![`\w\]:])", lambda found: f"[{found[1]}][{errors[found[1]]}]", text
    )


def _objects(parent: Object) -> Iterator[Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, Object):
            yield from _objects(member)


def _simplify_attributes(module: Module) -> None:
    """Remove attributes without a docstring, such as type variables, and shorten `Annotated[type, …]` to `type`."""
    for name, attribute in list(module.attributes.items()):
        if attribute.is_alias:
            continue
        value = attribute.value
        if attribute.docstring is None:
            module.del_member(name)
        elif isinstance(value, ExprSubscript) and str(value.left) == "Annotated":
            attribute.value = value.slice.elements[0] if isinstance(value.slice, ExprTuple) else value


def _remove_assignments_of_init(cls: Class) -> None:
    """Remove attributes without a docstring that `__init__` sets."""
    init = cls.members.get("__init__")
    if not isinstance(init, Function) or init.lineno is None or init.endlineno is None:
        return
    for name, attribute in list(cls.attributes.items()):
        inside = init.lineno <= (attribute.lineno or 0) <= init.endlineno
        if attribute.docstring is None and inside and name in cls.members:  # not an inherited one
            cls.del_member(name)


def _parameters(found: Object) -> set[str]:
    if isinstance(found, Function):
        return {parameter.name for parameter in found.parameters} - {"self", "cls"}
    if isinstance(found, Class):
        init = found.members.get("__init__")
        return _parameters(init) if isinstance(init, Function) else set(found.attributes)
    return set()


def _inherit_docstring(method: Function) -> None:
    if not isinstance(method.parent, Class):
        return
    for base in method.parent.mro():
        overridden = base.members.get(method.name)
        if overridden is not None and overridden.docstring:
            method.docstring = Docstring(overridden.docstring.value, parent=method)
            return
