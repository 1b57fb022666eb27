"""Pieces of prompts: tokens of texts, and places of soft tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rayfuse.modalities.messages import FILE_MARK, FileRef


class SpanFrame(NamedTuple):
    """Texts around a span of tokens, such as the special tokens that a processor writes around an image."""

    before: str = ""
    after: str = ""


class FileSpan(NamedTuple):
    """Piece of a prompt with the soft tokens of one of the files of an input."""

    name: str
    """The input."""
    item: int
    """Number of the file."""


class ReplyIds(list[int]):
    """Piece of a prompt with the tokens of an earlier reply, without its end token."""


Piece = list[int] | str | FileSpan
"""Part of a prompt: the ids of text tokens, or the input or file whose soft tokens are there."""


def num_tokens(pieces: Sequence[Piece]) -> int:
    """Return the number of text tokens of a prompt."""
    return sum(len(piece) for piece in pieces if isinstance(piece, list))


def split_at_files(
    text: str, files: Iterator[FileRef], names: Mapping[str, str], frames: Mapping[str, SpanFrame]
) -> list[str | FileSpan]:
    """Return the texts between files and the next files where a text has their marks: texts are first, last, and between.

    names: inputs that are present, by the type of their files; the files of others leave nothing. frames: texts around
    the files of an input, by its name.
    """
    pieces: list[str | FileSpan] = []
    before, *rest = text.split(FILE_MARK)
    for part in rest:
        file = next(files)
        if file.kind in names:
            name = names[file.kind]
            frame = frames.get(name, SpanFrame())
            pieces += [before + frame.before, FileSpan(name, file.item)]
            before = frame.after + part
        else:
            before += part
    return [*pieces, before]
