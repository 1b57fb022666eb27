"""Choice of the columns that become inputs."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from rayfuse.errors import SpecError
from rayfuse.formatting import truncate
from rayfuse.schema_inference.column import Column, names_id
from rayfuse.schema_inference.relations import describe_leak, find_copies
from rayfuse.schema_inference.sample import Sample

_MAX_REASONS = 10
_MAX_REASON_CHARS = 160


@dataclass
class Choice:
    """Columns that become inputs, and why others do not."""

    inputs: list[Column] = field(default_factory=list)
    """Columns for inputs, in the order of the data."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Other columns, and why."""
    warnings: list[str] = field(default_factory=list)
    """Columns that give a target away."""


def choose_columns(
    columns: Mapping[str, Column], sample: Sample, targets: Iterable[str], exclude: Collection[str]
) -> Choice:
    """Choose the columns that become inputs. Raises SpecError if there are none.

    If all others are left out, those that seem to give a target away are taken, or else ids as categories.
    """
    choice = Choice()
    suspects: list[Column] = []
    for name, column in columns.items():
        leak = _find_leak(column, sample, targets)
        if name in exclude:
            choice.left_out[name] = "excluded"
        elif leak and column.kind != "unusable":
            suspects.append(column)
            choice.left_out[name] = f"WARNING: seems to give the target away: {leak}"
            choice.warnings.append(f"`{name}` is left out, as it seems to give the target away: {leak}")
        elif not name:
            choice.left_out[name] = "has no name, so it is taken as an index"
        elif not column.is_input:
            choice.left_out[name] = column.note
        else:
            choice.inputs.append(column)
    _leave_out_copies(choice, sample)
    return choice if choice.inputs else _fall_back(choice, columns, suspects)


def _find_leak(column: Column, sample: Sample, targets: Iterable[str]) -> str | None:
    values = sample.columns[column.name]
    found = (
        describe_leak(column, values, target, sample.columns[target])
        for target in targets
        if target != column.name
    )
    return next(filter(None, found), None)


def _leave_out_copies(choice: Choice, sample: Sample) -> None:
    """Leave out columns that repeat another one; those that names make ids, such as `file_name`, first."""
    ordered = sorted(choice.inputs, key=lambda column: names_id(column.name))
    copies = find_copies({column.name: sample.columns[column.name] for column in ordered})
    choice.left_out |= {name: f"a copy of `{original}`" for name, original in copies.items()}
    choice.inputs = [column for column in choice.inputs if column.name not in copies]


def _fall_back(choice: Choice, columns: Mapping[str, Column], suspects: list[Column]) -> Choice:
    taken = [column for column in suspects if column.is_input]
    if not taken:
        ids = [
            column for column in columns.values() if column.kind == "id" and column.is_group and column.name
        ]
        taken = [
            dataclasses.replace(column, kind="category")
            for column in ids
            if choice.left_out[column.name] != "excluded"
        ]
    if not taken:
        reasons = [f"{name or repr(name)}: {reason}" for name, reason in choice.left_out.items()]
        raise SpecError(
            "no column can be an input; add one that depends on the target\n  "
            + "\n  ".join(
                truncate(reason, _MAX_REASON_CHARS)
                for reason in reasons[:_MAX_REASONS] or ["there is no other column"]
            )
        )
    for column in taken:
        note = choice.left_out.pop(column.name)
        choice.inputs.append(
            dataclasses.replace(column, note=f"{column.note}; taken, as there is no other input; {note}")
        )
    return choice
