"""Families of parts: fusions, encoders, tasks, inputs, gates and so on.

A family has one registry, next to its spec models, with a line for each built-in part: its spec model and the import
path of its implementation. The spec's union, the lookup of implementations and every list of types derive from it.
A part from a user's package has the import path of its class as `type` and goes through the same lookup.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar, Union, get_args

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    ValidationError,
)
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from rayfuse.errors import SpecError
from rayfuse.spec.base import JobSection, Pattern, SpecModel

ImportPath = Annotated[
    str,
    Pattern(
        r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        "not an import path; write MODULE:CLASS, as in my_package.module:MyPart",
    ),
]
"""MODULE:CLASS, of an installed package or of a file on PYTHONPATH."""

CUSTOM = "custom"
"""Tag of the spec model that every import path selects."""

ConfigT = TypeVar("ConfigT", bound=SpecModel)


class CustomConfig(JobSection):
    """A part from a user's package, by import path."""

    base_class: ClassVar[str]
    """Import path of the class that a custom part derives from."""

    type: ImportPath
    """Import path of the class, as in my_package.module:MyPart."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the class: validated by its `Options`, a pydantic model, if it has one; else as they are."""

    def load_class(self) -> Any:
        """Import the class. Raises SpecError if it does not exist or does not derive from `base_class`."""
        found = import_object(self.type)
        base = import_object(self.base_class)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise SpecError(f"{self.type}: not a subclass of {self.base_class.replace(':', '.')}")
        return found

    def validate_options(self) -> Any:
        """Return `options` as an instance of the class's `Options`. Raises SpecError if they do not fit."""
        model = options_model(self.load_class())
        if model is None:
            return self.options
        try:
            return model.model_validate(self.options)
        except ValidationError as error:
            from rayfuse.spec.error_messages import locate_errors

            path, message = locate_errors(error, model)[0]
            raise SpecError(f"{self.type}: options.{path}: {message}") from None


class Family(Mapping[str, type[ConfigT]], Generic[ConfigT]):
    """The parts of one kind: a mapping from each `type` to its spec model.

    parts: the registry, spec model → import path of the implementation. custom: the spec model of parts from users'
    packages. default: the `type` of a block without one; None if `type` is required.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[type[ConfigT], str],
        custom: type[CustomConfig],
        default: str | None = None,
    ) -> None:
        self.name = name
        self.custom = custom
        self.default = default
        self._configs = {type_name(config): config for config in parts}
        self._unions: dict[tuple[str, ...], Any] = {}
        self._paths = {type_name(config): path for config, path in parts.items()}

    def __getitem__(self, type_: str) -> type[ConfigT]:
        return self._configs[type_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)

    def config_class(self, type_: object) -> type[SpecModel] | None:
        """Return the spec model that a `type` selects; None if there is no such type."""
        tag = self._tag(type_)
        return self.custom if tag == CUSTOM else self._configs.get(tag or "")

    def implementation(self, type_: str) -> Any:
        """Import the implementation of a built-in type."""
        return import_object(self._paths[type_])

    def resolve(self, config: Any) -> Any:
        """Import the implementation of a part.

        Raises SpecError if a custom part's class does not exist or does not derive from the family's base class.
        """
        return (
            config.load_class() if isinstance(config, CustomConfig) else self.implementation(str(config.type))
        )

    def build(self, config: Any, *arguments: Any) -> Any:
        """Call the implementation of a part with its options and `arguments`.

        The options of a built-in part are its spec model, those of a custom part its validated `Options`.
        """
        return self.resolve(config)(part_options(config), *arguments)

    def union(self, exclude: tuple[str, ...] = ()) -> Any:
        """Return the tagged union of the spec models, for pydantic: one definition wherever it is used."""
        if exclude not in self._unions:
            name = f"{self.name.title().replace(' ', '')}{'Without' if exclude else ''}{''.join(exclude).title()}"
            self._unions[exclude] = TypeAliasType(name, self._union(exclude))
        return self._unions[exclude]

    def _union(self, exclude: tuple[str, ...]) -> Any:
        tagged = [(tag, config) for tag, config in self._configs.items() if tag not in exclude]
        members = tuple(Annotated[config, Tag(tag)] for tag, config in [*tagged, (CUSTOM, self.custom)])
        return Annotated[Union[members], Discriminator(self._discriminate)]  # noqa: UP007 - a tuple of members

    def _discriminate(self, value: Any) -> str | None:
        if isinstance(value, Mapping):
            return self._tag(value.get("type"))
        return self._tag(value.type) if isinstance(value, BaseModel) and hasattr(value, "type") else None

    def _tag(self, type_: object) -> str | None:
        if type_ is None:
            return self.default
        return CUSTOM if ":" in str(type_) else str(type_)


def families_by_input_type(
    name: str, parts: Mapping[str, Mapping[type[ConfigT], str]], custom: type[CustomConfig]
) -> dict[str, Family[ConfigT]]:
    """Return a family for each type of input, from a registry of each."""
    return {
        input_type: Family(f"{name} of {input_type} inputs", registry, custom)
        for input_type, registry in parts.items()
    }


class PartOf:
    """Annotation of a field that holds a part of a family.

    `Annotated[BaseFusionConfig, PartOf(lambda: FUSIONS)]` is the family's base class for type checkers and the union of
    its spec models for pydantic. family: called when the schema is built, so that parts may contain parts.
    """

    def __init__(self, family: Callable[[], Family[Any]], exclude: tuple[str, ...] = ()) -> None:
        self._family = family
        self._exclude = exclude

    @property
    def family(self) -> Family[Any]:
        """The family."""
        return self._family()

    @property
    def types(self) -> list[str]:
        """The built-in types that the field accepts."""
        return [type_ for type_ in self.family if type_ not in self._exclude]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.family.union(self._exclude))


def type_name(config: type[SpecModel]) -> str:
    """Return the `type` that selects a built-in spec model."""
    return str(get_args(config.model_fields["type"].annotation)[0])


def part_options(config: Any) -> Any:
    """Return the options for the constructor of a part: its spec model, or a custom part's `Options`."""
    return config.validate_options() if isinstance(config, CustomConfig) else config


def options_model(part: type) -> type[BaseModel] | None:
    """Return the pydantic model of a custom part's options; None if it takes any mapping."""
    model = getattr(part, "Options", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def import_object(path: str) -> Any:
    """Import the object at MODULE:NAME. Raises SpecError if it does not exist.

    A model folder cannot bring code along: the module must be installed, or on PYTHONPATH.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise SpecError(
            f"{path}: {error}; install the package where Rayfuse runs, or add its folder to PYTHONPATH"
        ) from None
    except AttributeError:
        raise SpecError(f"{path}: the module {module} has no `{name}`") from None


_FAMILIES = {
    "input": "rayfuse.spec.inputs:INPUTS",
    "encoder": "rayfuse.spec.encoders:ENCODERS",
    "augmentation": "rayfuse.spec.augment:AUGMENTATIONS",
    "alignment": "rayfuse.spec.align:ALIGNMENTS",
    "alignment loss": "rayfuse.spec.align_losses:ALIGNMENT_LOSSES",
    "fusion": "rayfuse.spec.fusion:FUSIONS",
    "task": "rayfuse.spec.tasks:TASKS",
    "optimizer": "rayfuse.spec.optimizers:OPTIMIZERS",
    "schedule": "rayfuse.spec.schedules:SCHEDULES",
    "gate": "rayfuse.spec.gates:GATES",
}
"""Registry of each kind of part; encoders and augmentations have one for each type of input."""


def load_families() -> dict[str, list[Family[Any]]]:
    """Import the registry of every kind of part."""
    found = {name: import_object(path) for name, path in _FAMILIES.items()}
    return {name: list(of.values()) if isinstance(of, dict) else [of] for name, of in found.items()}
