"""Check of a spec's custom parts: their classes are imported, so that an error has the path of its block."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rayfuse.errors import SpecError
from rayfuse.spec.family import CustomConfig


def check_custom_parts(spec: BaseModel, where: str) -> None:
    """Import the class of every custom part of a spec and validate its options.

    It is not part of validation, as a spec is also validated where only the cluster has the package. Raises SpecError
    with the path of the part, if its class is missing or not of its family, or its options are invalid. `where` is the
    file of the spec, for errors.
    """
    for path, part in _iter_custom_parts(spec, ()):
        try:
            part.validate_options()
        except SpecError as error:
            raise SpecError(f"{where}: {'.'.join(path)}: {error}") from None


def _iter_custom_parts(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], CustomConfig]]:
    if isinstance(node, CustomConfig):
        yield path, node
    if isinstance(node, BaseModel | dict):
        items: Any = node.items() if isinstance(node, dict) else node
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from _iter_custom_parts(value, (*path, str(key)))
