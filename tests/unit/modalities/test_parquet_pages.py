"""The sizes of parquet pages are known before they are decompressed."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfuse.errors import InvalidInputError
from rayfuse.modalities.decode_memory import LIMIT
from rayfuse.modalities.parquet_pages import check_pages, open_parquet


def parquet(column: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": column, "y": [0.0] * len(column)}), file, **options)
    return file.getvalue()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_valid_pages_are_accepted(version: str, compression: str, use_dictionary: bool) -> None:
    numbers = np.random.default_rng(0).integers(0, 1000, 50_000).astype(np.float64)
    content = parquet(
        numbers,
        data_page_version=version,
        compression=compression,
        use_dictionary=use_dictionary,
        row_group_size=20_000,
        data_page_size=1000,
        write_page_checksum=True,
    )
    check_pages(content, open_parquet(content).metadata, ["x", "y"])


def test_large_pages_are_rejected_unless_they_are_of_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIMIT, "max_bytes", 50_000_000)
    content = parquet([bytes(30_000_000)], compression="zstd", use_dictionary=False, write_statistics=False)
    assert len(content) < 40_000
    metadata = open_parquet(content).metadata
    check_pages(content, metadata, ["y"])
    with pytest.raises(InvalidInputError, match="takes 60 MB of memory"):
        check_pages(content, metadata, ["x"])


def test_headers_that_are_invalid_are_rejected() -> None:
    content = bytearray(parquet([1.0, 2.0], compression="none", use_dictionary=False))
    metadata = open_parquet(bytes(content)).metadata
    start = metadata.row_group(0).column(0).data_page_offset
    for damage in (b"\xff" * 16, b"\x0c" * 64, bytes(16)):
        content[start : start + len(damage)] = damage
        with pytest.raises(InvalidInputError, match=f"the header of a page at byte {start} is invalid"):
            check_pages(bytes(content), metadata, ["x"])


def test_large_footers_are_rejected() -> None:
    with pytest.raises(InvalidInputError, match="the footer of the parquet file has 5000000 bytes"):
        open_parquet(b"PAR1" + (5_000_000).to_bytes(4, "little") + b"PAR1")
