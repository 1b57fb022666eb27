"""A variant of one's own: `type` is then the import path of its class."""

from typing import Annotated, Any

from pydantic import Field

from rayfuse.spec.base import Part

ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")]
"""MODULE:CLASS, of an installed package or a file beside the command."""


class Custom(Part):
    """A class of your own, by import path; what it takes stands under `options`."""

    type: ImportPath
    options: dict[str, Any] = Field(default_factory=dict)
    """Given to the class: as its own `Options` where it has them, else as they are."""


def builtin_or_custom(value: Any) -> str:
    """Discriminator of a family with variants of its own and of others: an import path has a colon."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "custom" if isinstance(given, str) and ":" in given else "builtin"
