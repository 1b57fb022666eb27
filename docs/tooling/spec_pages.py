"""Pages of the configuration reference: one per kind of spec, and one per family of parts.

A key of a section has the anchor SECTION.KEY, and a part of a family the anchor TYPE, after the type of input where a
family has one for each.
"""

import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import spec_schema
from page import Page, first_sentence, table

from rayfuse.spec.family import Family, load_families
from rayfuse.spec.kinds import KINDS, spec_class

FOLDER = "reference/configuration"

_FAMILIES = {
    "input": ("inputs", "Inputs", "`inputs.NAME` of a job", "inputs.md"),
    "encoder": ("encoders", "Encoders", "`inputs.NAME.encoder` of a job", "encoders.md"),
    "augmentation": (
        "augmentations",
        "Augmentations",
        "`inputs.NAME.augment` of a job",
        "training-techniques.md",
    ),
    "alignment": ("alignments", "Alignments", "`align` and `inputs.NAME.align` of a job", "encoders.md"),
    "alignment loss": (
        "alignment-losses",
        "Alignment losses",
        "`align.loss` of a job",
        "training-techniques.md",
    ),
    "fusion": ("fusions", "Fusions", "`fusion` of a job", "fusion.md"),
    "task": ("tasks", "Tasks", "`tasks.NAME` of a job", "tasks.md"),
    "optimizer": ("optimizers", "Optimizers", "`train.optimizer` of a job", "optimization.md"),
    "schedule": ("schedules", "Schedules", "`train.schedule` of a job", "optimization.md"),
    "gate": ("gates", "Gates", "`--gate` of `rayfuse models promote`", "model-registry.md"),
}
"""Family → file, title, where its parts are used, and the guide about it."""


_HIGH_RANK = "---\nsearch:\n  boost: 4\n---\n"
"""Front matter of pages that searches find first."""

_GUIDES_TO_KINDS = {
    "data.md": "job",
    "training-techniques.md": "job",
    "hyperparameter-search.md": "sweep",
    "serving.md": "service",
    "deployment.md": "cluster",
}
"""Guide → the kind of spec that it is about."""


@dataclass(frozen=True)
class Section:
    """A mapping of a spec on a page."""

    page: str
    """Path of the page."""
    path: str
    """Path of the mapping in the spec or, for a part of a family, its type."""
    title: str
    """Heading, in Markdown."""
    level: int
    """Level of the heading."""
    definition: str
    """Name of the class."""

    @property
    def anchor(self) -> str:
        """Anchor of the heading, which differs from those of the keys."""
        return self.path.replace(".", "-")


@dataclass
class Reference:
    """All sections, and where each definition is."""

    sections: list[Section] = field(default_factory=list)
    places: dict[str, Section] = field(default_factory=dict)

    def add(self, section: Section) -> None:
        """Add a section, and after it those of the mappings that it refers to, unless they are elsewhere."""
        self.sections.append(section)
        self.places.setdefault(section.definition, section)
        for key, schema in spec_schema.definitions()[section.definition].get("properties", {}).items():
            for name in spec_schema.references(schema):
                if name not in self.places and not spec_schema.family_of(name):
                    self.add(self._nested(section, key, name))

    def _nested(self, parent: Section, key: str, definition: str) -> Section:
        tag = spec_schema.tag(definition)
        path = key if parent.path in KINDS else f"{parent.path}.{key}"
        shown = key if parent.path in KINDS else f"{parent.title.replace('`', '')}.{key}"
        title = f"`{shown}`: `{tag}`" if tag else f"`{shown}`"
        path = f"{path}.{tag}" if tag else path
        return Section(parent.page, path, title, min(parent.level + 1, 4), definition)

    def link(self, definition: str, page: str) -> str:
        """Return a link to a definition, from a page."""
        if family := spec_schema.family_of(definition):
            target, words = _family_place(family), f"{family.name}".replace("encoder of", "encoder for")
        else:
            section = self.places[definition]
            target = f"{section.page}#{section.anchor}"
            words = f"`{spec_schema.tag(definition)}`" if spec_schema.tag(definition) else "mapping"
        path, _, anchor = target.partition("#")
        relative = "" if path == page else os.path.relpath(path, os.path.dirname(page))
        return f"[{words}]({relative}{'#' if anchor else ''}{anchor})" if relative or anchor else words


def make_pages() -> list[Page]:
    """Return all pages of the configuration reference."""
    reference = build_reference()
    return [
        _overview(),
        *(_kind_page(kind, reference) for kind in KINDS),
        *(_family_page(name, found, reference) for name, found in load_families().items()),
    ]


def build_reference() -> Reference:
    """Place every mapping on a page."""
    reference = Reference()
    for kind in KINDS:
        reference.add(Section(f"{FOLDER}/{kind}.md", kind, "Top level", 2, spec_class(kind).__name__))
    for name, found in load_families().items():
        page = f"{FOLDER}/{_FAMILIES[name][0]}.md"
        for family in found:
            prefix = f"{_input_type(family)}-" if len(found) > 1 else ""
            for type_, model in spec_schema.variants(family).items():
                part = f"{prefix}{'custom' if ':' in type_ else type_}"
                reference.add(Section(page, part, f"`{type_}`", 3 if prefix else 2, model.__name__))
    return reference


def _overview() -> Page:
    kinds = [
        [f"[{kind}]({kind}.md)", first_sentence(inspect.getdoc(spec_class(kind)) or "")] for kind in KINDS
    ]
    parts = [[f"[{title}]({file}.md)", used] for file, title, used, _ in _FAMILIES.values()]
    text = (
        "# Configuration reference\n\n"
        "Every key of every spec, made from the JSON Schemas that `rayfuse schema KIND` prints. Unknown keys are errors. "
        "Relative paths are relative to the folder of the spec; paths may also be fsspec URLs. `${VAR}` and "
        "`${VAR:-DEFAULT}` read environment variables, and `--set a.b.c=VALUE` overrides a value. Durations and sizes "
        "are numbers (seconds, bytes) or text with a unit.\n\n"
        f"{table(['kind', 'describes'], kinds)}\n"
        "Parts are selected by their `type`, which is also the import path of a "
        "[custom part](../../extending.md).\n\n"
        f"{table(['family', 'used as'], parts)}"
    )
    return Page(f"{FOLDER}/index.md", "Overview", text)


def _kind_page(kind: str, reference: Reference) -> Page:
    path = f"{FOLDER}/{kind}.md"
    sections = [_section(section, reference) for section in reference.sections if section.page == path]
    return Page(path, kind.title(), "\n".join([_HIGH_RANK, f"# {kind.title()} configuration\n", *sections]))


def _family_page(name: str, found: list[Family[Any]], reference: Reference) -> Page:
    file, title, used, guide = _FAMILIES[name]
    path = f"{FOLDER}/{file}.md"
    default = found[0].default
    text = [_HIGH_RANK, f"# {title}\n", f"Values of {used}: see the [guide](../../{guide}).\n"]
    if default:
        text.append(f"Without `type`, it is `{default}`.\n")
    sections = [section for section in reference.sections if section.page == path]
    if len(found) == 1:
        text += [_section(section, reference) for section in sections]
    for family in found if len(found) > 1 else ():
        input_type = _input_type(family)
        text.append(f"## {input_type.replace('_', ' ').capitalize()} inputs {{ #{input_type}-inputs }}\n")
        text += [_section(s, reference) for s in sections if s.anchor.startswith(f"{input_type}-")]
    return Page(path, title, "\n".join(text))


def _section(section: Section, reference: Reference) -> str:
    schema = spec_schema.definitions()[section.definition]
    lines = [f"{'#' * section.level} {section.title} {{ #{section.anchor} }}\n"]
    lines.append(f"{_escape(schema.get('description', ''))}\n")
    lines += [_key(section, key, reference) for key in schema.get("properties", {})]
    return "\n".join(lines)


def _key(section: Section, key: str, reference: Reference) -> str:
    schema = spec_schema.definitions()[section.definition]
    found = schema["properties"][key]
    anchor = f"{section.path}.{key}"
    link = partial(reference.link, page=section.page)
    type_ = spec_schema.type_in_words(spec_schema.without_null(found), link)
    head = f'[`{key}`](#{anchor}){{ #{anchor} .key data-key="{section.definition}.{key}" }}'
    text = _escape(found.get("description", "")).replace("\n\n", "\n\n    ")
    return f"{head} {type_} · {_default_note(section.definition, key)}\n:   {text}\n"


def _default_note(definition: str, key: str) -> str:
    if key in spec_schema.definitions()[definition].get("required", ()):
        return "**required**"
    default = spec_schema.default_of(definition, key)
    return "optional" if default in (None, "null") else f"default `{default}`"


def _escape(text: str) -> str:
    """Escape what Markdown would take for HTML or a link."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("[", "\\[") for part in parts
    )


def references_of(guide: str) -> str:
    """Return the last section of a guide, with links to the reference of what it is about; empty if there is none."""
    links = [
        f"[{title}]({FOLDER}/{file}.md)" for file, title, _, about in _FAMILIES.values() if about == guide
    ]
    if kind := _GUIDES_TO_KINDS.get(guide):
        links.insert(0, f"[{kind.capitalize()} configuration]({FOLDER}/{kind}.md)")
    text = "Every key with its type, default and allowed values"
    return f"\n\n## Reference\n\n{text}: {', '.join(links)}.\n" if links else ""


def _family_place(family: Family[Any]) -> str:
    for name, found in load_families().items():
        if family in found:
            page = f"{FOLDER}/{_FAMILIES[name][0]}.md"
            return f"{page}#{_input_type(family)}-inputs" if len(found) > 1 else page
    raise ValueError(family.name)


def _input_type(family: Family[Any]) -> str:
    return family.name.removesuffix(" inputs").rpartition(" ")[2]


def navigation() -> Iterator[str | dict[str, str]]:
    """Yield the navigation of the configuration reference."""
    yield f"{FOLDER}/index.md"
    yield from ({kind.title(): f"{FOLDER}/{kind}.md"} for kind in KINDS)
    yield from ({title: f"{FOLDER}/{file}.md"} for file, title, *_ in _FAMILIES.values())
