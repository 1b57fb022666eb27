"""Parquet files of others: the sizes that the headers of their pages state, before they are decompressed.

Source: Parquet's `parquet.thrift`, in Thrift's compact protocol.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.decode_memory import reserve

_MAX_FOOTER = 4_000_000
_MAX_LIST = 100_000
_MAX_PAGES = 100_000
_MAX_DEPTH = 16
_UNCOMPRESSED, _COMPRESSED = 2, 3
"""Fields of a page's header: the sizes of the page in bytes."""
_COPIES = 2
"""Buffers of the size of a page: decompressed and decoded."""
_FOOTER_FACTOR = 60
"""Bytes in memory per byte of the footer."""


def open_parquet(content: bytes) -> Any:
    """Open a parquet file, whose footer is limited. Raises errors of pyarrow, InvalidInputError for a large footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = int.from_bytes(content[-8:-4], "little") if content.endswith(b"PAR1") else 0
    if footer > _MAX_FOOTER:
        raise InvalidInputError(
            f"the footer of the parquet file has {footer} bytes; the maximum is {_MAX_FOOTER}; write fewer columns and row groups"
        )
    reserve(footer * _FOOTER_FACTOR, f"a parquet file with a footer of {footer} bytes")
    return pq.ParquetFile(
        pa.BufferReader(content),
        pre_buffer=False,
        thrift_string_size_limit=_MAX_FOOTER,
        thrift_container_size_limit=_MAX_LIST,
    )


def check_pages(content: bytes, metadata: Any, columns: Sequence[str]) -> None:
    """Check the sizes of the pages of some columns. Raises InvalidInputError if one takes too much memory."""
    largest = dict.fromkeys(columns, 0)
    count = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema.partition(".")[0]
            for size in _page_sizes(content, chunk) if name in largest else ():
                largest[name] = max(largest[name], size)
                count += 1
                if count > _MAX_PAGES:
                    raise InvalidInputError(
                        f"the parquet file has more than {_MAX_PAGES} pages; write larger pages"
                    )
    total = sum(largest.values())
    reserve(total * _COPIES, f"a parquet file with {total} bytes in one page of each channel")


def _page_sizes(content: bytes, chunk: Any) -> Iterator[int]:
    """Yield the bytes of each page of a column in a row group, after decompression."""
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    place = min(offset for offset in offsets if offset is not None)
    end = place + chunk.total_compressed_size
    while 0 <= place < end:
        header, place = _read_header(content, place)
        place += header[_COMPRESSED]
        yield header[_UNCOMPRESSED]


def _read_header(content: bytes, place: int) -> tuple[dict[int, int], int]:
    """Return the integers of the header of a page by field, and the place after it."""
    reader = _CompactReader(content, place)
    try:
        fields = reader.read_struct()
    except IndexError:
        fields = {}
    if min(fields.get(_UNCOMPRESSED, -1), fields.get(_COMPRESSED, -1)) < 0:
        raise InvalidInputError(
            f"not a readable parquet file: the header of a page at byte {place} is invalid"
        )
    return fields, reader.place


class _CompactReader:
    """Reader of a structure in Thrift's compact protocol, of which the integers are kept."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def read_struct(self, depth: int = 0) -> dict[int, int]:
        """Return the integers of a structure by the number of their field. Raises IndexError if it is invalid."""
        if depth > _MAX_DEPTH:
            raise IndexError
        fields: dict[int, int] = {}
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._zigzag()
            value = self._value(byte & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (4, 5, 6):  # i16, i32, i64
            return self._zigzag()
        if kind == 3:  # i8
            self.place += 1
        elif kind == 7:  # double
            self.place += 8
        elif kind == 8:  # binary
            size = self._varint()
            self.place += size
        elif kind in (9, 10):  # list, set
            byte = self._byte()
            for _ in range(byte >> 4 if byte >> 4 < 15 else self._varint()):
                if byte & 15 in (1, 2):
                    self.place += 1
                else:
                    self._value(byte & 15, depth)
        elif kind == 12:
            self.read_struct(depth + 1)
        elif kind not in (1, 2):  # booleans have their value in the kind
            raise IndexError
        return None

    def _byte(self) -> int:
        byte = self.content[self.place]
        self.place += 1
        return byte

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise IndexError

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
